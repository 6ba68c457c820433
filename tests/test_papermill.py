"""The job notebook through papermill, as a user types it: both forms, two folders, bad parameters, and the real data's
path against a stand-in hub."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import yaml
from conftest import copy_project
from fake_hub import fill, serve

from macular.exceptions import ParameterError
from macular.process import in_test
from macular.train.config import Job, Preset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SMALL = "-p task pawsx -p method finetune -p preset mini -p max_train 48 -p rounds 1 -p langs en,de"


def shell(command, cwd=ROOT, **env):
    "Run a command line in a shell, with this environment's papermill"
    here = str(Path(sys.executable).parent)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PATH": here + os.pathsep + os.environ["PATH"]} | {k: str(v) for k, v in env.items()},
    )


def printed(path):
    "Everything a notebook's cells wrote as text"
    outputs = [o for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    return "\n".join(o.get("text", "") + str(o.get("data", {}).get("text/markdown", "")) for o in outputs)


def results(out):
    return sorted(Path(out).glob("*/result.json"))


def test_a_job_with_an_output_path(tmp_path):
    done = shell(f"papermill nbs/train.ipynb {tmp_path}/report.ipynb {SMALL} -p figures pdf -p out {tmp_path}/runs")
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = results(tmp_path / "runs")
    result, text = json.loads(found.read_text()), printed(tmp_path / "report.ipynb")
    assert (
        result["config"]["task"] == "pawsx"
        and result["config"]["max_train"] == 48
        and set(result["accuracy"]["pawsx"]) == {"en", "de"}
    )
    assert (
        "round 1: dev pawsx" in text and "| en |" in text and f"job       {tmp_path}/runs/{found.parent.name}" in text
    )
    figures = {path.name: path.read_bytes()[:5] for path in (found.parent / "figures").iterdir()}
    assert figures == dict.fromkeys(("languages.pdf", "confusion.pdf", "losses-finetune.pdf"), b"%PDF-")
    first = text.index("**Fine-tuning on PAWS-X:**")
    assert re.search(r"% accuracy in de \(95 % interval over test items: \d+\.\d to \d+\.\d;", text[first:])
    assert first < text.index("| en |") < text.index("preset `mini`, seed 0"), "the result first, the settings last"
    report = nbformat.read(tmp_path / "report.ipynb", 4)
    assert all(c.metadata.jupyter.source_hidden for c in report.cells[3:] if c.cell_type == "code")
    assert "widgets" not in report.metadata and report.metadata.papermill.parameters["max_train"] == 48


def test_a_bad_parameter_stops_the_job_before_it_starts(tmp_path):
    done = shell(f"papermill nbs/train.ipynb {tmp_path}/report.ipynb {SMALL} -p lrr 1e-5 -p out {tmp_path}/runs")
    assert done.returncode == 1 and "unknown parameter 'lrr'" in done.stderr
    assert not (tmp_path / "runs" / "trainings").exists()


@pytest.mark.parametrize(
    "given,said",
    [
        ("lrr: 1.0e-5", "unknown parameter 'lrr'"),
        ("learning_rate: 2e-5", "write 2.0e-05"),
        ("method: makular", "Did you mean 'macular'?"),
        ("{stage1: 'xnli,pwasx', method: macular}", "Did you mean 'pawsx'?"),
    ],
)
def test_the_first_cell_refuses_a_bad_parameter(given, said):
    "The parameters as papermill writes them into the notebook; the first cells imported nothing heavy"
    notebook = papermill.iorw.load_notebook_node(str(ROOT / "nbs" / "train.ipynb"))
    written = papermill.parameterize.parameterize_notebook(notebook, yaml.safe_load(given))
    cells = [c.source for c in written.cells if c.cell_type == "code"][:3]
    names = {"In": ["", *cells]}
    with pytest.raises(ParameterError, match=re.escape(said)):
        for source in cells:
            exec(source, names)
    assert names["presets"] and "torch" not in names


def test_the_notebooks_parameters_are_the_jobs():
    found = papermill.inspect_notebook(str(ROOT / "nbs" / "train.ipynb"))
    defaults = {name: eval_default(p["default"]) for name, p in found.items()}
    assert list(defaults) == [f.name for f in fields(Job)]
    for f in fields(Job):
        assert defaults[f.name] == (f.default or "" if isinstance(f.default, tuple) else f.default), f.name
    assert all(p["help"] and p["inferred_type_name"] for p in found.values())
    for name in (f.name for f in fields(Job) if f.default is None):
        usual = "the preset's" if name in {f.name for f in fields(Preset)} else "the method's"
        assert f"empty: {'always the same ones' if name == 'sample' else usual}" in found[name]["help"], name


def opened(names):
    "The train notebook's names after its first cells, the ones before anything heavy is imported"
    first = [c.source for c in nbformat.read(ROOT / "nbs" / "train.ipynb", 4).cells if c.cell_type == "code"][:2]
    for i, source in enumerate(first):
        exec(source, names)
        if i == 0:
            names |= names.pop("injected", {})
    return names


def test_a_test_of_the_notebook_trains_anew(monkeypatch):
    "nbdev_test finds nothing in runs/; a folder that was given is kept"
    monkeypatch.setenv("IN_TEST", "1")
    names = opened({})
    assert names["job"].out == names["scratch"].name and not list(Path(names["job"].out).iterdir())
    assert opened({"injected": {"out": "elsewhere"}})["job"].out == "elsewhere"
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # IN_TEST was left in the shell that started a kernel
    assert in_test() is False
    monkeypatch.undo()
    monkeypatch.delenv("IN_TEST", raising=False)
    assert opened({})["job"].out == "runs"


def test_the_form_that_prints_the_notebook_and_in_test_of_a_users_shell(tmp_path):
    "From a folder outside the project, by a relative path; the result is in the folder where it is looked for"
    there = os.path.relpath(ROOT / "nbs" / "train.ipynb", tmp_path)
    done = shell(f"IN_TEST=1 papermill {there} {SMALL} > report.ipynb", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = results(tmp_path / "runs")
    text = printed(tmp_path / "report.ipynb")
    assert "round 1: dev pawsx" in text and f"job       runs/{found.parent.name}" in text


def test_the_command_line_prints_what_happens(tmp_path):
    words = SMALL.replace("-p ", "").replace(" ", "=").split("=")
    typed = " ".join(f"{name}={value}" for name, value in zip(words[::2], words[1::2]))
    done = shell(f"macular train {typed} out={tmp_path}/runs --report {tmp_path}/report.ipynb")
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = results(tmp_path / "runs")
    accuracy = json.loads(found.read_text())["accuracy"]["pawsx"].values()
    assert "round 1: dev pawsx" in done.stdout and "Traceback" not in done.stderr
    assert (
        f"mean      {sum(accuracy) / 2:.1f} %, 2 languages, test" in done.stdout
        and f"job       {found.parent}" in done.stdout
    )


LONG = "task=pawsx method=finetune preset=mini max_train=2000 rounds=2 langs=de"


def in_a_terminal(command, stop):
    "The exit code and the screen of a command that is stopped while its line moves"
    pexpect = pytest.importorskip("pexpect")
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # ipykernel looks at it
    process = pexpect.spawn("/bin/bash", ["-c", command], cwd=str(ROOT), env=env, timeout=300, encoding="utf-8")
    process.expect(r"Fine-tuning: step \d+ of 126, \d\d:\d\d left")
    before = process.before + process.after
    stop(process)
    process.expect(pexpect.EOF)
    process.close()
    return process.exitstatus, before + process.before


def test_a_line_moves_in_the_terminal_and_a_stopped_run_says_so(tmp_path):
    "`macular train` is interrupted; papermill resumes, is stopped by the control file, resumes and is interrupted"
    here = str(Path(sys.executable).parent)
    mill = " ".join(f"-p {word.replace('=', ' ')}" for word in LONG.split())
    mill = f"{here}/papermill nbs/train.ipynb {tmp_path}/report.ipynb {mill} -p out {tmp_path}/runs"

    def write_stop(process):
        [history] = (tmp_path / "runs").glob("trainings/*/history.jsonl")
        (history.parent / "control").write_text("stop")

    for command, stop, code in (
        (f"{here}/macular train {LONG} out={tmp_path}/runs --report {tmp_path}/r.ipynb", lambda p: p.sendintr(), 130),
        (mill, write_stop, 0),
        (f"{mill} --log-output", lambda p: p.sendintr(), 1),
    ):
        found, said = in_a_terminal(command, stop)
        assert found == code and "Traceback" not in said
        assert re.search(r"Fine-tuning: saved at step \d+; the same command resumes", said), said[-2000:]
        assert ("Fine-tuning: resuming at step" in said) == (stop is write_stop or "--log-output" in command)
        assert "over TCP" not in said or "macular train" not in command


@pytest.mark.parametrize("word", ["langs=dee", "stage1=papr", "backbone=mini-brt", "task=xnil", "preset="])
def test_the_command_line_refuses_before_a_kernel_starts(monkeypatch, word):
    from macular.cli import main

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))
    assert main(["train", word]) == 2


def eval_default(text):
    import ast

    return ast.literal_eval(text)


def test_the_cards_command_on_the_hubs_data(tmp_path):
    project = copy_project(tmp_path / "project")
    words = {w: f"{w}x" for w in "the number is".split()}
    dictionaries = project / "data" / "dictionaries"
    dictionaries.mkdir(parents=True)
    for lang in ("de", "fr", "es", "zh"):
        (dictionaries / f"en-{lang}.txt").write_text(
            "".join(f"{w}\t{'中' if lang == 'zh' else lang}{t}\n" for w, t in words.items())
        )
    with serve(fill(tmp_path / "hub")) as hub:
        done = shell(
            "papermill nbs/train.ipynb runs/xnli.ipynb -p task xnli",
            project,
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE=0,
            HF_HOME=tmp_path / "cache",
            MACULAR_PRESET="quick",
        )
        asked = [p for p in hub.asked if "/resolve/" in p]
    assert done.returncode == 0, done.stderr[-3000:]
    [found] = results(project / "runs")
    result = json.loads(found.read_text())
    assert result["config"]["preset"] == "quick" and len(result["accuracy"]["xnli"]) == 15 and result["split"] == "test"
    assert list(result["trainings"]) == ["macular_nots", "macular"]
    trained = {p.split("/resolve/")[1].split("/", 1)[1] for p in asked if "/train-" in p}
    assert trained == {f"{where}/train-00000-of-00001.parquet" for where in ("en", "qam", "qadsm")}, (
        "a machine-translated training split was asked for"
    )
    assert not [p for p in asked if p.endswith((".bin", ".h5", ".msgpack", ".py"))]
    assert any(o["noncommercial"] for o in result["origins"])
