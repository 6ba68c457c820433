"""Plans of jobs: how they are read and checked, what they share, who does them; each job once, whatever is killed."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fake_jobs
import pytest
from conftest import ROOT
from fake_jobs import TINY, many

from macular.exceptions import DataError, ParameterError, SetupError, StorageError
from macular.jobs.engines import Processes, Ray, Sequential, attempt, sweep
from macular.jobs.plan import Plan, _jobs_to_run_first, _remaining, _stages, _summary, plan, rows, state
from macular.jobs.rerun import compare_runs, rerun
from macular.jobs.search import _GRIDS, _best, _dev_accuracy, paper_search, read_search
from macular.results.records import folder_of, parameters_of
from macular.store import lock, read_json, sha256, write_json
from macular.train.config import check, fill
from macular.train.resolve import identity, place

TESTS = str(Path(__file__).parent)


def done_once(jobs, out):
    "Every job has its result, and no job was done twice"
    counts = Counter(line["job"] for line in fake_jobs.logged(out, "done"))
    return (
        {s["state"] for s in jobs.states} == {"done"}
        and set(counts) <= {identity(j) for j in jobs}
        and set(counts.values()) == {1}
    )


# a table becomes a plan


def test_all_forms_say_the_same(tmp_path):
    import pandas as pd

    grid = {"task": ["pawsx", "xnli"], "seed": [0, 1], "alpha": 0.3, "preset": "mini"}
    flat = [{"task": t, "seed": s, "alpha": 0.3, "preset": "mini"} for t in ("pawsx", "xnli") for s in (0, 1)]
    (tmp_path / "plan.toml").write_text(
        'preset = "mini"\nalpha = 0.3\n[[grid]]\ntask = "pawsx"\nseed = [0, 1]\n[[grid]]\ntask = "xnli"\n'
        "seed = [0, 1]\n"
    )
    (tmp_path / "plan.csv").write_text(
        "\ufefftask, seed,alpha,preset,langs\npawsx,0,0.3,mini,\npawsx,1,0.3,mini,\nxnli,0,0.3,mini,\n"
        "xnli,1,0.3,mini,\n",
        "utf-8",
    )
    wanted = {identity(job) for job in plan(grid)}
    assert len(wanted) == 4
    for table in (
        flat,
        [check(row) for row in flat],
        pd.DataFrame(flat),
        pd.DataFrame(flat).assign(rounds=None),
        tmp_path / "plan.toml",
        tmp_path / "plan.csv",
    ):
        assert {identity(job) for job in plan(table)} == wanted


def test_lists_are_values_where_the_parameter_is_a_list():
    assert [r["langs"] for r in rows({"langs": ["de", "fr"], "seed": [0]})] == [["de", "fr"]]
    assert [r["langs"] for r in rows({"langs": [["de"], [], ["fr", "sw"]]})] == [["de"], [], ["fr", "sw"]]
    assert [r["stage1"] for r in rows({"stage1": ["paper", ["xnli", "pawsx"]]})] == ["paper", ["xnli", "pawsx"]]
    assert [r["langs"] for r in rows(check({"langs": "de,fr"}))] == [["de", "fr"]]


def test_what_says_the_same_is_one_job():
    common = {"task": "xnli", "method": "macular", "preset": "mini"}
    jobs = plan([common, common | {"alpha": 0.5}, common | {"rounds": 3.0}, common | {"seed": 1}])
    assert len(jobs) == 2 and jobs.merged == 2
    assert identity(check(common)) != identity(check(common | {"langs": "de"}))
    assert identity(check(common)) == identity(check(common | {"out": "elsewhere"}))


def test_identity_sees_a_tasks_own_file_and_extensions(tmp_path):
    extension = tmp_path / "more.py"
    extension.write_text("pass\n")
    job = replace(check({"preset": "mini"}), extensions=(str(extension),))
    before = identity(job)
    assert before != identity(check({"preset": "mini"}))
    task = tmp_path / "own.toml"
    task.write_text('name = "own"\nlabels = ["no", "yes"]\nlangs = ["en", "de"]\n')
    own = replace(job, task=str(task))
    first = identity(own)
    task.write_text('name = "own"\nlabels = ["yes", "no"]\nlangs = ["en", "de"]\n')
    assert identity(own) != first


def test_every_problem_is_told_at_once():
    table = {"method": ["makular", "macular"], "seed": [0, -1], "lrr": 1, "preset": ["mini", "auto"]}
    with pytest.raises(ParameterError) as e:
        plan(table)
    lines = str(e.value).splitlines()
    assert len(lines) == 4 and all(" of 8: " in line for line in lines)
    for said in (
        "Did you mean 'macular'?",
        "seed is -1",
        "unknown parameter 'lrr'",
        "a plan names it: mini, quick, real, paper",
    ):
        assert said in str(e.value)
    assert lines[0].startswith("rows 1, 2, 3 and 1 more of 8: ")


def test_hundreds_of_problems_fit_a_screen():
    with pytest.raises(ParameterError) as e:
        plan([{"preset": "mini", f"x{i}": 1} for i in range(300)])
    assert len(str(e.value).splitlines()) == 9 and str(e.value).endswith("and 292 more problems")


@pytest.mark.parametrize(
    "name,text,said",
    [
        ("plan.csv", "task,seed\nxnli,1,2\n", "line 2: more cells"),
        ("plan.toml", "seed = ", "not valid TOML"),
        ("plan.toml", b"\xff\xfe", "not valid TOML"),
        ("plan.yaml", "task: xnli", ".toml or .csv"),
        ("gone.csv", None, "no file"),
        ("plan.csv", "task,preset\n", "no rows"),
        ("plan.toml", 'preset = "mini"\nseed = []', "seed has no values"),
        ("plan.csv", "task,seed,preset\nxnli,one,mini\n", "the text 'one'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ParameterError, DataError), match=said):
        plan(path)


def test_a_name_that_is_code_is_no_parameter():
    for name in ("x=1\nimport os", "task=1;import os#", "__class__", "task "):
        with pytest.raises(ParameterError, match="unknown parameter"):
            plan({name: 1, "preset": "mini"})


@pytest.mark.slow
def test_a_thousand_jobs_are_planned_in_a_moment(tmp_path):
    started = time.process_time()
    jobs = plan(
        {
            "task": ["pawsx", "xnli"],
            "method": ["macular", "finetune"],
            "seed": range(250),
            "preset": "mini",
            "out": str(tmp_path),
        }
    )
    text = str(jobs)
    assert len(jobs) == 1000 and "and 960 jobs more" in text and "1250 distinct trainings" in text
    assert time.process_time() - started < 10


# what jobs share


@pytest.mark.slow
def test_two_jobs_share_a_training_here_exactly_if_they_do_in_the_store():
    "The plan's names against the store's hashes, over rows, tasks, seeds and settings"
    from macular.train.inputs import Data, digests, trained_on
    from macular.train.resolve import method_of, stage_methods, training_key

    read, used, lexicon = {}, {}, None

    def in_store(job):
        nonlocal lexicon
        job, keys = fill(job), []
        data, method = Data(job, used, [], read), method_of(job)
        if lexicon is None:
            lexicon = data.lexicon
        data.lexicon = lexicon
        for m in stage_methods(method, job):
            learned, near = trained_on(data, m)
            everything = [*learned, *([near] if near else [])]
            keys.append(training_key(m, everything, job, digests(data, m, everything), keys[-1] if keys else ""))
        return keys

    common = {"preset": "mini", "task": ["pawsx", "xnli"], "stage1": ["pawsx", "xnli"]}
    jobs = plan(
        [
            common | {"method": ["macular", "macular_wo_consistency", "macular_wo_task_adv"], "seed": [0, 1]},
            common | {"method": "macular", "alpha": 0.3, "langs": [["de"], []]},
            common | {"method": "macular", "beta1": 1.0},
            common | {"method": "macular_nots", "word_rate": [0.5, 0.3]},
            common | {"method": ["finetune", "cosda_ml"], "stage1": "paper", "backbone": ["mini-bert", "mini-xlmr"]},
        ]
    )
    here, there = (
        [key for job in jobs for key in of(job)] for of in (lambda job: [s.plan_key for s in _stages(job)], in_store)
    )
    assert len(here) == len(there) and len(set(here)) == len(set(there)) == len(set(zip(here, there)))
    assert len(set(here)) < len(here) - 10


def test_jobs_that_train_for_others_come_first_and_followers_last():
    common = {"preset": "mini", "task": "pawsx"}
    jobs = plan(
        [
            common | {"method": ["macular", "macular_wo_consistency"], "seed": [0, 1]},
            common | {"method": "finetune"},
            common | {"method": "macular_nots", "seed": 1},
        ]
    )
    assert [(j.method, j.seed) for j in jobs] == [
        ("macular", 0),
        ("macular_nots", 1),
        ("finetune", 0),
        ("macular", 1),
        ("macular_wo_consistency", 0),
        ("macular_wo_consistency", 1),
    ]
    assert _jobs_to_run_first(jobs.trainings) == {
        0,
        1,
    } and "7 distinct trainings (10 without sharing); jobs 1 to 2 train what others share." in str(jobs)


def test_missing_data_is_told_before_the_start(tmp_path):
    jobs = plan(
        {
            "preset": "quick",
            "task": "xnli",
            "data_dir": str(tmp_path),
            "method": ["macular", "finetune"],
            "backbone": "mini-bert",
            "lexicon_dir": str(tmp_path),
        }
    )
    [said] = [line for line in _summary(jobs) if "Cannot start here" in line]
    assert "job 1: stage 1 needs training data" in said and "macular data fetch" in said


@pytest.mark.parametrize(
    "given, words",
    [
        ({"method": "rs_da", "synonyms": "nowhere.txt"}, "there is no nowhere.txt"),
        ({"method": "syn", "tree_dir": "nowhere"}, "xnli-train-en.conllu"),
    ],
)
def test_missing_files_of_a_row_are_told_before_the_start(given, words):
    [said] = [
        line for line in _summary(plan({"preset": "mini", "task": "xnli"} | given)) if "Cannot start here" in line
    ]
    assert words in said


def test_other_files_are_another_training(tmp_path):
    (tmp_path / "a.txt").write_text("big large\n")
    jobs = [
        check({"preset": "mini", "task": "xnli", "method": "rs_da", "synonyms": s})
        for s in ("", str(tmp_path / "a.txt"))
    ]
    assert len({_stages(j)[-1].key for j in jobs}) == 2


# the state of a job is its folder's


def test_states(tmp_path):
    job = many(tmp_path, 1)[0]
    assert state(job) == {"state": "waiting"} and not place(job).exists(), "asking makes no folder"
    write_json(place(job) / "state.json", {"state": "running", "attempts": 1})
    assert state(job)["state"] == "waiting", "nobody holds it: it was killed"
    code = (
        f"import time; from macular.store import lock\n"
        f"with lock({str(place(job))!r}): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    holder.stdout.readline()
    assert state(job)["state"] == "running"
    holder.kill()
    holder.wait()
    assert state(job)["state"] == "waiting"
    ended = attempt(job, fake_jobs.wait)
    assert ended["state"] == state(job)["state"] == "done" and ended["attempts"] == 2
    (fake_jobs.result(job) / "result.json").unlink()
    assert state(job) == {"state": "waiting"}, "a result that was deleted is not there"


def test_the_time_is_known_only_from_the_same_size(tmp_path):
    jobs = many(tmp_path, 3)
    assert _remaining(jobs) == (0, 3, 3, []) and "not known" in str(jobs)
    for n, (job, seconds) in enumerate(zip(jobs, (10, 30))):
        folder, config = (
            tmp_path / f"job-{n}",
            {k: v for k, v in vars(fill(job)).items() if k not in ("out", "data_dir", "lexicon_dir", "extensions")},
        )
        write_json(folder / "config.json", config)
        write_json(
            folder / "environment.json",
            {
                "device": "cpu",
                "seconds to score": 2.0,
                "out": job.out,
                "data_dir": "",
                "lexicon_dir": "",
                "extensions": [],
            },
        )
        write_json(
            folder / "result.json", {"config": config, "trainings": {"finetune": {"key": f"k{n}", "tasks": ["pawsx"]}}}
        )
        write_json(tmp_path / "trainings" / f"k{n}" / "environment.json", {"device": "cpu", "seconds": seconds})
    assert _remaining(jobs) == (3 * (20 + 2), 0, 3, ["cpu"]), "the median of 10 and 30, and scoring"
    assert "About 66 s of computing left, as measured here on cpu." in str(jobs)
    larger = many(tmp_path, 3, max_train=[64, 128])
    assert _remaining(larger)[:3] == (
        66,
        3,
        6,
    ) and "and 3 of 6 trainings of sizes that have not been trained here" in str(larger)
    write_json(place(jobs[0]) / "state.json", {"state": "done", "folder": "job-0"})
    assert _remaining(jobs)[0] == 44


# each job once: in one process and in several


def test_what_failed_is_written_down_and_the_rest_goes_on(tmp_path):
    jobs, told = many(tmp_path, 5), []
    sweep(jobs, do=fake_jobs.refused, say=told.append)
    assert [s["state"] for s in jobs.states] == ["done", "failed", "failed", "failed", "done"]
    assert [s.get("exit_code") for s in jobs.states] == [None, 3, 2, 1, None] and [
        s["attempts"] for s in jobs.states
    ] == [1] * 5
    assert "traceback" not in jobs.states[1] and "ZeroDivisionError" in jobs.states[3]["traceback"]
    assert (
        len(told) == 5 and all("\n" not in line for line in told) and "failed, DataError: there are no rows" in told[1]
    )
    assert "left" in told[0] and "left" not in told[-1] and "DataError: there are no rows |" in str(jobs)
    sweep(jobs, do=fake_jobs.wait, say=told.append)
    assert (
        done_once(jobs, tmp_path)
        and [s["attempts"] for s in jobs.states] == [1, 2, 2, 2, 1]
        and told[5].startswith("[3/5]")
    )


def test_again_asks_the_store(tmp_path):
    jobs = many(tmp_path, 3)
    for again in (False, True, False):
        sweep(jobs, do=fake_jobs.wait, again=again, say=print)
    assert len(fake_jobs.logged(tmp_path, "asked")) == 6 and done_once(jobs, tmp_path)


def test_a_state_that_cannot_be_written_is_an_error_of_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        sweep(many(tmp_path / "file" / "runs", 1), do=fake_jobs.wait)


@pytest.mark.parametrize(
    "engine", [Sequential(), pytest.param(Processes(1), marks=pytest.mark.slow)], ids=["here", "processes"]
)
def test_a_storage_error_of_a_worker_keeps_its_class(tmp_path, engine, capfd):
    "It is neither tried again nor taken for a death"
    jobs = many(tmp_path, 2)
    with pytest.raises(StorageError, match="cannot write"):
        sweep(jobs, engine, do=fake_jobs.blocked)
    assert len(fake_jobs.logged(tmp_path, "asked")) == 1 and "Traceback" not in capfd.readouterr().err


def test_whoever_looks_leaves_no_trace(tmp_path):
    "Asking for a state makes no folder, clears nothing, and names no writer"
    from macular.store import is_locked

    assert not is_locked(tmp_path / "gone") and not (tmp_path / "gone").exists()
    with lock(tmp_path / "job"):
        assert is_locked(tmp_path / "job")
        (tmp_path / "job" / ".x.0123456789abcdef.tmp").write_text("half")
    assert not is_locked(tmp_path / "job") and (tmp_path / "job" / ".x.0123456789abcdef.tmp").exists()


@pytest.mark.slow
def test_processes_do_each_job_once_though_one_is_killed(tmp_path):
    jobs = many(tmp_path, 12)
    sweep(jobs, Processes(3), do=fake_jobs.killed_once, say=print)
    assert done_once(jobs, tmp_path) and [s["attempts"] for s in jobs.states] == [1, 1, 2] + [1] * 9
    asked = fake_jobs.logged(tmp_path, "asked")
    assert (
        os.getpid() not in {line["pid"] for line in asked}
        and len({line["pid"] for line in asked}) >= 3
        and {line["threads"] for line in asked} == {"1"}
    )


@pytest.mark.slow
def test_a_job_that_is_killed_every_time_is_given_up(tmp_path):
    jobs = many(tmp_path, 4)
    sweep(jobs, Processes(2), do=fake_jobs.killed_always, retries=1, say=print)
    assert [s["state"] for s in jobs.states] == ["done", "done", "failed", "done"]
    assert (
        jobs.states[2]["attempts"] == 2
        and jobs.states[2]["error"] == "KilledError"
        and "2 times" in jobs.states[2]["message"]
    )


@pytest.mark.slow
def test_processes_do_not_retry_what_was_refused(tmp_path):
    jobs = many(tmp_path, 5)
    sweep(jobs, Processes(2), do=fake_jobs.refused, say=print)
    assert Counter(line["seed"] for line in fake_jobs.logged(tmp_path, "asked") if line["seed"] in (1, 2, 3)) == {
        1: 1,
        2: 1,
        3: 1,
    }
    assert [s["state"] for s in jobs.states] == ["done", "failed", "failed", "failed", "done"]


SWEEP = """
import sys
sys.path.insert(0, {tests!r})
import fake_jobs
from macular.jobs.engines import Processes, Sequential, sweep
if __name__ == "__main__": sweep(fake_jobs.many({out!r}, {n}), {engine}, do=fake_jobs.wait)
"""


def sweeper(out, engine, n):
    path = Path(out) / f"sweep-{engine[0]}.py"
    path.write_text(SWEEP.format(tests=TESTS, out=str(out), engine=engine, n=n))
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_plan_whose_parent_is_killed_goes_on(tmp_path):
    "In one process; test_load.py kills the parent of several"
    engine = "Sequential()"
    n, rng, killed = 120, random.Random(engine), 0
    while len(fake_jobs.logged(tmp_path, "done")) < 0.7 * n:
        parent, before = sweeper(tmp_path, engine, n), len(fake_jobs.logged(tmp_path, "done"))
        while parent.poll() is None and len(fake_jobs.logged(tmp_path, "done")) < before + 10:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        parent.kill()
        parent.wait()
        killed += 1
    last = sweeper(tmp_path, engine, n)
    assert last.wait(60) == 0, last.stderr.read()
    assert (
        killed >= 3 and done_once(many(tmp_path, n), tmp_path) and len(list(tmp_path.glob("done-*/result.json"))) == n
    )


@pytest.mark.slow
def test_two_sweeps_of_one_plan_at_once(tmp_path):
    both = [sweeper(tmp_path, engine, 60) for engine in ("Sequential()", "Processes(2)")]
    assert [p.wait(60) for p in both] == [0, 0]
    jobs = many(tmp_path, 60)
    assert done_once(jobs, tmp_path) and len(fake_jobs.logged(tmp_path, "done")) == 60 == len(
        fake_jobs.logged(tmp_path, "asked")
    )


@pytest.mark.slow
def test_a_report_whose_kernel_is_killed_is_tried_again(tmp_path):
    "papermill calls such a notebook completed"
    extension, once = tmp_path / "killer.py", tmp_path / "once"
    extension.write_text(
        f"import os, signal\nfrom pathlib import Path\nonce = Path({str(once)!r})\n"
        "if 'JPY_PARENT_PID' in os.environ and not once.exists():\n    once.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    from macular.jobs.engines import run_as_notebook

    jobs = many(tmp_path, 1, extensions=str(extension))
    sweep(jobs, do=run_as_notebook, say=print)
    [now] = jobs.states
    assert once.exists() and now["state"] == "done" and now["attempts"] == 2
    assert folder_of(jobs[0]) == tmp_path / now["folder"] and (place(jobs[0]) / "report.ipynb").stat().st_size > 10_000
    assert parameters_of(tmp_path / now["folder"])["max_train"] == 64


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_jobs
from macular.jobs.engines import Processes, sweep
from macular.jobs.plan import plan
jobs = plan(dict(task="pawsx", method="finetune", preset="mini", seed=[0, 1], out={out!r}))
{last}
"""


@pytest.mark.slow
@pytest.mark.parametrize("last", ["sweep(jobs, Processes(2), do=fake_jobs.wait)", "1 / (__name__ == '__main__')"])
def test_a_script_without_a_guard_gets_that_sentence(tmp_path, last):
    "Workers import the script again; they were not killed, and no job is noted as failed"
    script = SCRIPT.format(tests=TESTS, out=str(tmp_path / "runs"), last=last)
    guarded = "\nif __name__ == '__main__': sweep(jobs, Processes(2), do=fake_jobs.wait)\n"
    (tmp_path / "script.py").write_text(script + guarded)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and 'below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert "killed" not in done.stderr and not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_a_sweep_shows_a_line_a_job_and_the_time_left(tmp_path, monkeypatch, capsys):
    "From the file that each job writes; a job that is still running at the end is said to be saved"
    import macular.process as process

    shown, line = [], "Fine-tuning: step 40 of 75, 00:12 left, dev 81.2 %"
    monkeypatch.setattr(process._ProgressLines, "show", lambda lines, name, text: shown.append(f"{name}: {text}"))
    jobs = many(tmp_path, 3)

    def do(job):
        record = {"line": line, "told": "resumed at step 20", "left": 12.0}
        write_json(place(job) / "progress.json", record)
        time.sleep(1.5)
        if job == jobs[2]:
            write_json(place(job) / "progress.json", record | {"told": "saved at step 44; the same command resumes"})
            raise SystemExit(143)
        return fake_jobs.wait(job)

    said = []
    with pytest.raises(SystemExit):
        sweep(jobs, do=do, say=said.append)
    assert f"finetune on pawsx, seed 0: {line}, resumed at step 20" in shown
    assert "sweep: 0 of 3 jobs done, about 36 s left" in shown
    assert any(text.startswith("sweep: 2 of 3 jobs done, about 12 s left") for text in shown)
    assert said[-1] == "finetune on pawsx, seed 2: saved at step 44; the same command resumes"


# Ray


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: the extra `cluster`")
    path = os.pathsep.join([TESTS, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        num_cpus=3,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=80 * 2**20,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()


def test_ray_does_each_job_once_though_a_worker_is_killed(cluster, tmp_path):
    jobs = many(tmp_path, 20)
    sweep(jobs, Ray(gpus=0), do=fake_jobs.killed_once, say=print)
    assert done_once(jobs, tmp_path) and [s["attempts"] for s in jobs.states] == [1, 1, 2] + [1] * 17
    pids = {line["pid"] for line in fake_jobs.logged(tmp_path, "asked")}
    assert len(pids) >= 3 and os.getpid() not in pids


def test_ray_does_not_retry_what_was_refused(cluster, tmp_path):
    jobs = many(tmp_path, 5)
    sweep(jobs, Ray(gpus=0), do=fake_jobs.refused, say=print)
    assert [s["state"] for s in jobs.states] == ["done", "failed", "failed", "failed", "done"] and [
        s["attempts"] for s in jobs.states
    ] == [1] * 5


def test_ray_gives_up_what_dies_every_time(cluster, tmp_path):
    jobs = many(tmp_path, 3)
    sweep(jobs, Ray(gpus=0), do=fake_jobs.killed_always, retries=1, say=print)
    assert [(s["state"], s["attempts"]) for s in jobs.states] == [("done", 1), ("done", 1), ("failed", 2)]


def test_ray_puts_two_jobs_on_a_card(cluster, tmp_path):
    "Two cards that are only said to be there, jobs that take half of one"
    jobs = many(tmp_path, 4)
    sweep(jobs, Ray(cpus=0.5, gpus=0.5), do=fake_jobs.wait_long, say=print)
    assert Counter(line["gpu"] for line in fake_jobs.logged(tmp_path, "done")) == {"0": 2, "1": 2}


def test_ray_refuses_what_would_wait_for_ever(cluster, tmp_path):
    with pytest.raises(SetupError, match="3 GPU, and the cluster has 2"):
        sweep(many(tmp_path, 1), Ray(gpus=3), do=fake_jobs.wait)
    with pytest.raises(SetupError, match="64 CPU"):
        sweep(many(tmp_path, 1), Ray(cpus=64, gpus=0), do=fake_jobs.wait)


def test_a_real_job_killed_on_ray_ends_in_the_same_bytes(cluster, tmp_path):
    "Its process dies in the middle of the training; another takes it up. An undisturbed one beside it"
    for out, do in (("killed", fake_jobs.train_killed_once), ("whole", None)):
        jobs = many(tmp_path / out, 1, max_train=160)
        sweep(jobs, Ray(gpus=0) if do else Sequential(), **({"do": do} if do else {}), say=print)
        assert jobs.states[0]["state"] == "done" and jobs.states[0]["attempts"] == (2 if do else 1)
    one, two = (
        Path(tmp_path / out / many(tmp_path / out, 1, max_train=160).states[0]["folder"]) for out in ("killed", "whole")
    )
    assert one.name == two.name and {n: sha256(one / n) for n in ("result.json", "predictions.parquet")} == {
        n: sha256(two / n) for n in ("result.json", "predictions.parquet")
    }


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: the extra `cluster`")
    started = time.monotonic()
    with pytest.raises(SetupError, match="cannot reach a Ray cluster"):
        sweep(many(tmp_path, 1), Ray(address="127.0.0.1:1"), do=fake_jobs.wait)
    assert time.monotonic() - started < 20


def test_ray_that_does_not_start_in_time_is_told(tmp_path, monkeypatch):
    "Ray raises a bare exception; what is advised can be done"
    ray = pytest.importorskip("ray", reason="Ray is not installed: the extra `cluster`")

    def init(*args, **options):
        raise Exception("The current node timed out during startup.\nThe raylet failed to start.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SetupError, match="(?s)Ray did not start .* timed out during startup.*--engine processes"):
        sweep(many(tmp_path, 1), Ray(), do=fake_jobs.wait)
    with pytest.raises(SetupError, match="cannot reach a Ray cluster: The current node timed out"):
        sweep(many(tmp_path, 1), Ray(address="auto"), do=fake_jobs.wait)


def test_without_ray_the_command_for_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SetupError, match=r"pip install .*\[cluster\]"):
        sweep(many(tmp_path, 1), Ray(), do=fake_jobs.wait)


# a staged search


def by_hand(job, dev, test):
    "A finished job with these accuracies"

    def do(job):
        write_json(
            fake_jobs.result(job) / "result.json",
            {
                "config": {"task": job.task},
                "accuracy": {job.task: {"en": test}},
                "trainings": {
                    "macular_nots": {"round": 1, "dev": [{"xnli": 1.0}]},
                    job.method: {"round": 2, "dev": [{job.task: 0.0}, {job.task: dev}]},
                },
            },
        )
        return fake_jobs.result(job)

    assert attempt(job, do)["state"] == "done"


def test_the_dev_rows_choose_and_the_test_rows_do_not(tmp_path):
    grid = {"learning_rate": [1e-3, 1e-4, 1e-5], "seed": [0, 1]}
    jobs = plan(TINY | grid | {"out": str(tmp_path)})
    for job, dev in zip(jobs, (90, 50, 70, 80, 60, 60)):
        by_hand(job, dev, 100 - dev)
    assert _dev_accuracy(jobs[0]) == 90 and _best(jobs, ["learning_rate"]) == {"learning_rate": 1e-4}
    assert _best(jobs, ["learning_rate", "seed"]) == {"learning_rate": 1e-3, "seed": 0}


def test_a_choice_needs_one_task_and_all_jobs(tmp_path):
    jobs = many(tmp_path, 2)
    by_hand(jobs[0], 50, 50)
    with pytest.raises(ParameterError, match="seed 1, is waiting"):
        _best(jobs, ["seed"])
    with pytest.raises(ParameterError, match="one task at a time"):
        _best(Plan((jobs[0], replace(jobs[0], task="xnli"))), ["seed"])


def test_the_papers_search_is_33_settings_a_task(tmp_path):
    search = paper_search(task="xnli", preset="mini", out=str(tmp_path))
    assert (
        search.counts == [24, 9]
        and "24 + 9 = 33 settings" in str(search)
        and len(_GRIDS[0]["batch_size"]) * len(_GRIDS[0]["learning_rate"]) == 24
    )
    seen = []
    for stage in search.plans():
        for n, job in enumerate(stage):
            if state(job)["state"] != "done":
                by_hand(job, 50 + (n == 17), 50)
        seen.append(stage)
    chosen = seen[0][17]
    assert [len(p) for p in seen] == [24, 9] and {(j.learning_rate, j.batch_size) for j in seen[1]} == {
        (chosen.learning_rate, chosen.batch_size)
    }
    assert len({identity(j) for p in seen for j in p}) == 32, "the one at the preset's alpha is in both stages"


@pytest.mark.slow
def test_a_search_from_a_file_goes_on(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(
        f'task = "pawsx"\nmethod = "finetune"\npreset = "mini"\nmax_train = 64\nrounds = 1\nout = "{tmp_path}"\n'
        f"[[stage]]\nlearning_rate = [1e-3, 1e-4]\n[[stage]]\nbatch_size = [8, 16]\n"
    )
    first, second = read_search(path).plans(), read_search(path).plans()
    for job, dev in zip(next(first), (40, 60)):
        by_hand(job, dev, 0)
    assert [j.learning_rate for j in next(first)] == [1e-4, 1e-4]
    assert {s["state"] for s in next(second).states} == {"done"}
    path.write_text("[[stage]]\nalpha = 0.3\n")
    with pytest.raises(ParameterError, match="lists of values"):
        read_search(path)
    for nothing in ("stage = []\n", "[[stage]]\n", "stage = [1]\n", "[[stage]]\nalpha = []\n"):
        path.write_text(nothing)
        with pytest.raises(ParameterError, match=r"search.toml: a search has one \[\[stage\]\] or more"):
            read_search(path)
    path.write_text("[[stage]]\nalpha = [0.3]\n[[grid]]\nseed = [1]\n")
    with pytest.raises(ParameterError, match="not both"):
        read_search(path)


# a run again


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    out = tmp_path_factory.mktemp("once")
    jobs = sweep(many(out, 1, langs=[["de", "fr"]]), say=print)
    return out / jobs.states[0]["folder"]


def test_a_run_again_is_the_same_bytes(once, tmp_path):
    again = rerun(once, str(tmp_path))
    assert (
        again.equal and again.folders == (once.name, once.name) and again.predictions == (0, 1500) and not again.machine
    )
    assert (tmp_path / once.name / "trainings").is_dir(), "it was trained anew"


def test_a_run_again_and_again_is_done_each_time(once, tmp_path):
    "A finished run is found and not done again; a second repetition has a folder of its own"
    made = []
    for _ in range(2):
        rerun(once, str(tmp_path))
        made.append(sorted(p.parent.parent.name for p in tmp_path.glob("*/*/result.json")))
    assert made == [[once.name], [once.name, f"{once.name}-2"]]


def test_what_differs_is_told(once, tmp_path):
    other = rerun(once, str(tmp_path))
    folder = tmp_path / once.name / once.name
    changed = read_json(folder / "environment.json")
    changed["versions"]["torch"], changed["device"] = "1.0", "a card"
    write_json(folder / "environment.json", changed)
    changed = read_json(folder / "result.json")
    changed["accuracy"]["pawsx"]["fr"] -= 1
    write_json(folder / "result.json", changed)
    found = compare_runs(once, folder)
    assert (
        other.equal
        and not found.equal
        and set(found.machine) == {"versions.torch", "device"}
        and set(found.result) == {"accuracy.pawsx.fr"}
    )
    assert "versions.torch" in str(found) and "Different" in str(found)


def test_a_run_again_needs_a_finished_run(once, tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        rerun(tmp_path)
