"""The command line: its help, its completion, its exit codes, and what it lets through to papermill."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fake_jobs
import papermill
import pytest
from conftest import ROOT
from typer.testing import CliRunner

import macular.cli
from macular.arguments import _jobs_table, complete, engine, explained
from macular.cli import app, main
from macular.data.tasks import tasks
from macular.exceptions import DataError, NumericError, ParameterError, SetupError
from macular.jobs.plan import plan
from macular.store import write_json
from macular.train.config import Job
from macular.train.methods import methods

TINY = ["task=pawsx", "method=finetune", "preset=mini", "max_train=64", "rounds=1", "langs=de"]
CODE = [
    "x=1\nimport os=1",
    "x=1\nopen('pwned', 'w')\ny=2",
    "task;import os#=1",
    "__import__('os')=1",
    "task =xnli",
    "In=1",
    "globals=1",
    "=1",
]


WIDE = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def shell(*words, **env):
    "Run a command as in a terminal of 100 columns"
    return subprocess.run(
        [Path(sys.executable).with_name("macular"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | WIDE | {"PYTHONPATH": str(ROOT)} | env,
    )


def commands(group, path=()):
    "Every command, with the words that lead to it"
    for name, command in group.commands.items():
        yield from commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]


@pytest.fixture
def pretended(monkeypatch):
    "Jobs that are done in a moment"
    monkeypatch.setattr(macular.cli, "compute", fake_jobs.wait)


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))


# help


def test_every_command_says_what_it_does():
    from typer.main import get_command

    found = dict(commands(get_command(app)))
    assert {
        ("tasks",),
        ("methods",),
        ("predict",),
        ("train",),
        ("rerun",),
        ("export",),
        ("data", "check"),
        ("data", "fetch"),
        ("sweep", "plan"),
        ("sweep", "run"),
        ("sweep", "status"),
    } <= set(found)
    for path, command in found.items():
        assert command.help and command.help.endswith("."), path
        for option in command.params:
            assert option.name == "help" or getattr(option, "help", None), (path, option.name)


@pytest.mark.slow
def test_help_tells_the_exit_codes_and_fits_a_terminal():
    said = shell("--help")
    assert said.returncode == 0 and re.search(
        r"0 done, 2 parameters, 3 data,\s+4 machine, 5 storage,\s+6 numbers", re.sub(r"\s+", " ", said.stdout)
    )
    assert max(map(len, said.stdout.splitlines())) <= 100 and "Usage: macular" in said.stdout
    for words in (("sweep",), ("sweep", "run"), ("train",), ("rerun",), ("predict",)):
        said = CliRunner().invoke(app, [*words, "-h"], prog_name="macular", env=WIDE)
        assert said.exit_code == 0 and "Usage: macular" in said.stdout
        assert max(map(len, said.stdout.splitlines())) <= 100


def completed(typed, number, run=None):
    "The words that bash is offered for a line, in this process or by a command"
    given = {"_MACULAR_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(number)}
    if run is not None:
        return run(**given).stdout.split()
    return CliRunner().invoke(app, [], prog_name="macular", env=given).stdout.split()


@pytest.mark.slow
def test_the_installed_command_completes():
    assert "status" in completed("macular sweep st", 2, shell)
    assert "cosda_ml" in completed("macular train method = cosda", 4, shell)


def test_the_shell_completes_commands_and_parameters():
    for typed, wanted in (
        ("macular sw", "sweep"),
        ("macular sweep st", "status"),
        ("macular train al", "alpha="),
        ("macular sweep run --en", "--engine"),
    ):
        assert wanted in completed(typed, len(typed.split()) - 1), typed


def complete_after(incomplete, *before):
    return complete(SimpleNamespace(params={"words": before}), incomplete)


def test_names_and_values_are_completed():
    assert complete_after("") == [f"{name}=" for name in Job.__dataclass_fields__]
    assert set(complete_after("task=")) == {f"task={name}" for name in tasks}
    assert complete_after("task=xnli,qa", "seed=0,1") == ["task=xnli,qam", "task=xnli,qadsm"]
    assert complete_after("method=cosda") == ["method=cosda_ml", "method=cosda_ml_x2"]
    assert complete_after("preset=") == ["preset=auto", "preset=mini", "preset=quick", "preset=real", "preset=paper"]
    assert complete_after("seed=1") == complete_after("nothing=") == []


def test_values_are_completed_in_bash_which_divides_words_at_the_sign():
    assert complete_after("cosda", "seed=0", "method", "=") == ["cosda_ml", "cosda_ml_x2"]
    assert complete_after("", "preset") == ["auto", "mini", "quick", "real", "paper"]
    for words, number, wanted in (
        ("macular train method = cosda", 4, "cosda_ml"),
        ("macular train preset =", 3, "quick"),
        ("macular sweep plan task = pa", 5, "pawsx"),
        ("macular distill run method = cosda", 5, "cosda_ml"),
    ):
        assert wanted in completed(words, number), words


def test_the_help_of_train_lists_the_parameters_of_the_notebook():
    said = re.sub(r"\s+", " ", CliRunner().invoke(app, ["train", "--help"], prog_name="macular", env=WIDE).stdout)
    cell = papermill.inspect_notebook(str(ROOT / "nbs" / "train.ipynb"))
    assert list(explained()) == list(Job.__dataclass_fields__) == list(cell)
    for name, comment in explained().items():
        assert comment and f"{name}: {comment}" in said, name


def test_without_the_notebook_the_parameters_are_explained_by_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("")
    assert all(explained().values()) and "a number" not in explained()["seed"]
    (tmp_path / "nbs").mkdir()
    for odd in ("{", '{"cells": []}', '{"cells": 1}', json.dumps({"cells": [{"metadata": {"tags": ["parameters"]}}]})):
        (tmp_path / "nbs" / "train.ipynb").write_text(odd)
        assert explained()["alpha"] == "Eq. 8: weight of the shared encoder, 0 to 1"


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0 and re.fullmatch(r"macular \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2 + len(methods)
    assert "| macular | Macular | near | macular_nots | task + aug_kl + 0.1 lang_adv + 0.1 consistency |" in said


def test_every_command_has_the_short_form_of_help(capsys):
    from typer.main import get_command

    for path in [(), ("data",), ("sweep",), *dict(commands(get_command(app)))]:
        assert main([*path, "-h"]) == 0 and "Usage: " in capsys.readouterr().out, path


def test_tasks_are_listed(capsys):
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2 + len(tasks)
    assert "| xnli | XNLI | entailment, neutral, contradiction | en ar bg de" in said


# exit codes


@pytest.mark.parametrize(
    "words,code",
    [
        (["sweep", "plan", *TINY], 0),
        (["sweep"], 2),
        (["sweep", "plan"], 2),
        (["swep"], 2),
        (["sweep", "run", *TINY, "--workers", "two"], 2),
        (["sweep", "run", *TINY, "--workers", "8"], 2),
        (["sweep", "run", *TINY, "--engine", "ray", "--workers", "8"], 2),
        (["sweep", "run", *TINY, "--engine", "rya"], 2),
        (["sweep", "run", *TINY, "--gpus", "1"], 2),
        (["sweep", "run", *TINY, "--only", "7"], 2),
        (["sweep", "run", *TINY, "--engine", "processes", "--workers", "0"], 2),
        (["sweep", "plan", "task=xnli"], 2),
        (["sweep", "plan", "plan.yaml"], 2),
        (["sweep", "plan", "gone.toml"], 3),
        (["rerun", "gone"], 3),
        (["train", "task=gone.toml"], 2),
        (["train", "data_dir"], 2),
    ],
)
def test_exit_codes(words, code, tmp_path, no_kernel):
    assert main([*words, f"out={tmp_path}"] if "preset=mini" in words else words) == code


@pytest.mark.parametrize("error,code", [(ParameterError, 2), (DataError, 3), (SetupError, 4), (NumericError, 6)])
def test_a_failed_sweep_ends_with_the_code_of_its_failures(error, code, tmp_path, monkeypatch, capsys):
    def do(job):
        if job.seed == 1:
            raise error("what happened")
        return fake_jobs.wait(job)

    monkeypatch.setattr(macular.cli, "compute", do)
    words = [*TINY, "seed=0,1", f"out={tmp_path}"]
    assert main(["sweep", "run", *words]) == code
    assert f"job 2: {error.__name__}: what happened" in capsys.readouterr().err
    assert main(["sweep", "status", *words]) == 0
    assert f"job 2: {error.__name__}: what happened" in capsys.readouterr().out


def test_failures_of_several_kinds_end_with_1(tmp_path, monkeypatch):
    monkeypatch.setattr(macular.cli, "compute", fake_jobs.refused)
    assert main(["sweep", "run", *TINY, "seed=0,1,2", f"out={tmp_path}"]) == 1


def test_a_place_that_cannot_be_written_ends_with_5(tmp_path, pretended):
    (tmp_path / "file").write_text("")
    assert main(["sweep", "run", *TINY, f"out={tmp_path}/file/runs"]) == 5


def test_ray_that_is_absent_ends_with_4(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "run", *TINY, f"out={tmp_path}", "--engine", "ray"]) == 4


# what reaches papermill


@pytest.mark.parametrize("word", CODE)
@pytest.mark.parametrize("command", [["train"], ["sweep", "plan"], ["sweep", "run", "--reports"]])
def test_a_name_that_is_code_is_refused_before_papermill_sees_it(
    command, word, no_kernel, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "preset=mini", word]) == 2
    assert "unknown parameter" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_only_declared_parameters_reach_papermill(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda notebook, output, parameters, **more: seen.append(parameters)
    )
    value = 'a"; import os #\n${HOME} {{x}}'
    assert main(["train", *TINY, "seed=3", f"lexicon_dir={value}", "--report", str(tmp_path / "r.ipynb")]) == 0
    [parameters] = seen
    declared = papermill.inspect_notebook(str(ROOT / "nbs" / "train.ipynb"))
    assert parameters == {
        "task": "pawsx",
        "method": "finetune",
        "preset": "mini",
        "seed": 3,
        "lexicon_dir": value,
        "max_train": 64,
        "rounds": 1,
        "langs": "de",
    }
    assert set(parameters) <= set(declared)


@pytest.mark.slow
def test_a_value_that_is_code_stays_a_text(tmp_path):
    "papermill escapes values; the cell it would write is read back"
    from papermill.translators import translate_parameters

    value = 'x\'\nimport os\n"""\\'
    cell = translate_parameters("python3", "python", {"lexicon_dir": value}, "Parameters")
    [assign] = ast.parse(cell).body
    assert ast.literal_eval(assign.value) == value


# paths


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with a record in runs/ and beside it another folder of that name; the working directory is its nbs/"
    (tmp_path / "clone" / "nbs").mkdir(parents=True)
    (tmp_path / "clone" / "settings.ini").write_text("")
    for place in (tmp_path / "clone" / "runs", tmp_path / "runs"):
        place.mkdir()
        (place / "found.jsonl").write_text("")
    monkeypatch.chdir(tmp_path / "clone" / "nbs")
    return tmp_path / "clone"


def seen_by(command, words, monkeypatch, name):
    "The arguments that a command passes to a function of macular.cli"
    seen = []
    monkeypatch.setattr(macular.cli, name, lambda *a, **k: seen.append((*a, *k.values())) or sys.exit(0))
    main([*command, *words])
    return seen[0]


@pytest.mark.parametrize(
    "typed,meant",
    [
        (["../runs"], ["runs"]),
        (["../../runs"], ["OUT/runs"]),
        (["../runs/found.jsonl"], ["runs/found.jsonl"]),
        (["found.jsonl"], ["runs/found.jsonl"]),  # a name below runs/
        ([], ["runs"]),
        (["/elsewhere"], ["/elsewhere"]),
    ],
)
def test_a_relative_path_starts_at_the_working_directory(project, monkeypatch, typed, meant):
    found = []
    monkeypatch.setattr(macular.cli, "records_at", lambda path, wanted: found.append(path) or [])
    main(["table", *typed])
    assert found == [path.replace("OUT", str(project.parent)) for path in meant]


def test_what_is_written_starts_at_the_working_directory(project, monkeypatch):
    import macular.deploy.huggingface

    seen = []
    monkeypatch.setattr(macular.deploy.huggingface, "export", lambda *a: seen.append(a) or sys.exit(0))
    main(["export", "../runs/found.jsonl", "models/x"])
    main(["export", "found.jsonl", "../models/x", "--backbone", "../../runs"])
    assert [a[:2] for a in seen] == [("runs/found.jsonl", "nbs/models/x"), ("runs/found.jsonl", "models/x")]
    assert seen[1][-1] == str(project.parent / "runs")
    assert seen_by(["rerun"], ["found.jsonl"], monkeypatch, "rerun") == ("runs/found.jsonl", "runs/again")
    assert seen_by(["rerun"], ["found.jsonl", "--out", "x"], monkeypatch, "rerun") == ("runs/found.jsonl", "nbs/x")


def test_paths_of_a_job_start_at_the_working_directory(project, monkeypatch):
    "The same job from two folders has the same name, and its record no path"
    (project / "nbs" / "own.toml").write_text("")
    (project / "words").mkdir()
    words = ["task=xnli", "out=../elsewhere", "lexicon_dir=../words", "backbone=google-bert/bert", "extensions=a,b.py"]
    (project / "nbs" / "b.py").write_text("")
    [found] = seen_by(["sweep", "plan"], [*words, "task=own.toml", "seed=0,1"], monkeypatch, "plans")
    assert found == [
        "task=xnli",
        "out=elsewhere",
        "lexicon_dir=words",
        "backbone=google-bert/bert",
        "extensions=a,nbs/b.py",
        "task=nbs/own.toml",
        "seed=0,1",
    ]
    (project / "nbs" / "plan.toml").write_text("")
    assert seen_by(["sweep", "status"], ["plan.toml"], monkeypatch, "plans") == (["nbs/plan.toml"],)


def test_a_path_of_the_root_is_not_taken_in_silence(project, capsys):
    for words in (["table", "runs/found.jsonl"], ["sweep", "run", "task=xnli", "data_dir=runs"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "start at the working directory" in said and "Did you mean ../runs" in said


def test_in_the_root_words_stay_as_they_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["task=xnli", "out=x/./y", "lexicon_dir=~/d"]
    assert seen_by(["sweep", "plan"], words, monkeypatch, "plans") == (words,)


def test_help_says_where_paths_start(capsys):
    assert main(["--help"]) == 0 and "Relative paths start at the working directory" in capsys.readouterr().out
    assert main(["table", "--help"]) == 0
    assert "below the project's root" in re.sub(r"[\s│]+", " ", capsys.readouterr().out)


# sweeps


def test_commas_multiply_except_within_lists():
    assert _jobs_table(["plan.toml"]) == "plan.toml"
    assert _jobs_table(["seed=0,1", "seed=5", "langs=de,fr", "langs=sw", "deterministic=true", "task=xnli"]) == {
        "seed": [0, 1, 5],
        "langs": [["de", "fr"], ["sw"]],
        "deterministic": [True],
        "task": ["xnli"],
    }
    jobs = plan(_jobs_table([*TINY, "langs=de,fr", "learning_rate=1e-3,2e-5"]))
    assert len(jobs) == 4 and {j.learning_rate for j in jobs} == {1e-3, 2e-5}


def test_a_sweep_is_planned_run_and_gone_on_with(tmp_path, pretended, capsys):
    (tmp_path / "plan.toml").write_text(
        'task = "pawsx"\nmethod = "finetune"\npreset = "mini"\nmax_train = 64\nrounds = 1\n'
        f'seed = [0, 1, 2]\nout = "{tmp_path}"\n'
    )
    path = str(tmp_path / "plan.toml")
    assert (
        main(["sweep", "plan", path]) == 0
        and "3 jobs: 3 waiting." in capsys.readouterr().out
        and not (tmp_path / "jobs").exists()
    )
    assert (
        main(["sweep", "run", path, "--only", "2"]) == 0
        and "[1/1] finetune on pawsx, seed 1: done" in capsys.readouterr().out
    )
    assert main(["sweep", "status", path]) == 0 and "3 jobs: 1 done, 2 waiting." in capsys.readouterr().out
    assert main(["sweep", "run", path]) == 0
    said = capsys.readouterr().out
    assert "[2/3]" in said and "[3/3]" in said and "seed 1" not in said
    assert main(["sweep", "run", path, "--again"]) == 0
    assert (
        Counter(x["seed"] for x in fake_jobs.logged(tmp_path, "asked")) == {0: 2, 1: 2, 2: 2}
        and len(fake_jobs.logged(tmp_path, "done")) == 3
    )


def test_a_search_is_done_a_stage_at_a_time(tmp_path, monkeypatch, capsys):
    def do(job):
        write_json(
            fake_jobs.result(job) / "result.json",
            {
                "config": {"task": job.task},
                "trainings": {"finetune": {"round": 1, "dev": [{job.task: 100 * job.learning_rate}]}},
            },
        )
        return fake_jobs.result(job)

    monkeypatch.setattr(macular.cli, "compute", do)
    path = tmp_path / "search.toml"
    path.write_text(
        f'task = "pawsx"\nmethod = "finetune"\npreset = "mini"\nout = "{tmp_path}"\n'
        "[[stage]]\nlearning_rate = [0.1, 0.2]\n[[stage]]\nbatch_size = [8, 16, 32]\n"
    )
    assert main(["sweep", "plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 + 3 = 5 settings" in said and "2 jobs: 2 waiting." in said
    assert main(["sweep", "run", str(path)]) == 0
    assert "[3/3]" in capsys.readouterr().out
    assert main(["sweep", "status", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 jobs: 2 done." in said and "3 jobs: 3 done." in said
    jobs = [json.loads(p.read_text())["job"] for p in tmp_path.glob("jobs/*/state.json")]
    assert {j["learning_rate"] for j in jobs if "batch_size" in j} == {0.2}


def test_two_processes_unless_said_otherwise():
    assert [engine("processes", n, None, None).slots for n in (None, 8)] == [2, 8]


def test_a_students_rival_is_looked_up_before_it_is_trained(monkeypatch, capsys):
    import macular.deploy.distill

    monkeypatch.setattr(macular.deploy.distill, "distill", lambda *a, **k: pytest.fail("a student was trained"))
    assert (
        main(["distill", "teacher", "--plain", "typo"]) == 3
        and "there is no finished run in typo" in capsys.readouterr().err
    )
