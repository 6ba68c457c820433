"""Long and often: what grows with steps, rows, runs and looks, and what is left behind. Every bound has a control that
breaks it.

`python tests/test_load.py` is the training whose memory is measured, in a process of its own."""

import ctypes
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_jobs
import nbformat
import numpy as np
import pytest
import toy
from conftest import ROOT
from fake_jobs import many
from test_jobs import TESTS, done_once

from macular import cli
from macular.data.mini_world import Mini
from macular.exceptions import DataError
from macular.jobs.engines import compute
from macular.jobs.plan import _heartbeat_age
from macular.results import figures
from macular.results.figures import curves, history, rounds_of
from macular.results.timing import fresh
from macular.store import read_json
from macular.train.config import check
from macular.train.resolve import place
from macular.train.run import run
from macular.ui import views as notebook_views

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/statm").exists(),
        reason="memory, handles and processes are counted in /proc, which is Linux's",
    ),
]


# ------------------------------------------------------------------ memory of a training


def resident():
    "Bytes of memory this process has, after the allocator gave back what is free"
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train_long():
    """Macular without the consistency training for 750 steps, watched as a notebook does, then 300 more with every
    loss kept"""
    from macular.results.figures import Live
    from macular.train.methods import methods

    row, numbers, kept = methods["macular_nots"], toy.recipe(rounds=5), []
    built = toy.made(row, toy.for_row(row, n=67, dropout=0.1), numbers, double=False)
    steps = 5 * sum(p.passes * p.steps for p in built.phases)

    def keeping(loss):
        def found(batch):
            kept.append(loss(batch))
            return kept[-1]

        return found

    def measured(phases, rounds):
        live, marks = Live(), []
        live(
            "start",
            {
                "method": row,
                "folder": Path(folder),
                "steps": steps,
                "phases": [(p.name, p.passes * p.steps) for p in phases],
                "rows": {},
                "notes": [],
            },
        )

        def look(line):
            live("step", line | {"of": steps})
            if line["step"] % 10 == 0:
                marks.append((line["step"], resident()))

        toy.fit(phases, toy.Loop(rounds, 3), folder=folder, on_step=look)
        return marks

    marks = []
    with tempfile.TemporaryDirectory() as folder:
        measured(built.phases, 1)  # what is made once is made
    gc.freeze()  # what the imports made is not looked at again
    for rounds, wrap in ((5, lambda loss: loss), (2, keeping)):
        with tempfile.TemporaryDirectory() as folder:
            marks.append(measured([replace(p, loss=wrap(p.loss)) for p in built.phases], rounds))
            sizes = [len(line) + 1 for line in (Path(folder) / "history.jsonl").read_bytes().splitlines()]
    print(json.dumps({"clean": marks[0], "kept": marks[1], "line": [max(sizes), sum(sizes) / len(sizes)]}))


def slope(marks):
    "Bytes a step over the last two thirds: the median over all pairs of marks, which one jump does not move"
    from scipy.stats import theilslopes

    steps, held = np.array(marks)[len(marks) // 3 :].T
    return theilslopes(held, steps).slope


@pytest.fixture(scope="module")
def trained():
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_steps(trained):
    assert trained["clean"][-1][0] >= 740 and slope(trained["clean"]) < 2000


def test_negative_control_a_kept_loss_keeps_its_graph(trained):
    assert trained["kept"][-1][0] >= 290 and slope(trained["kept"]) > 20_000


def test_a_line_of_the_history_is_short(trained):
    assert trained["line"][0] <= 300 and trained["line"][1] <= 200


# ------------------------------------------------------------------ a quarter of the rows of XNLI

ROWS = 100_000

READ_AND_SWITCH = """
from pathlib import Path
from transformers import AutoTokenizer
import numpy as np
from macular.text.code_switch import CodeSwitch
from macular.train.inputs import digest
from macular.data.mini_world import backbone, lexicon
from macular.data.sources import File
from macular.data.tasks import Task, load
from macular.text.encode import TextSettings, Views
words, tokenizer = lexicon(), AutoTokenizer.from_pretrained(backbone("mini-xlmr"))
before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
task = Task("large", ("no", "maybe", "yes"), ("en", "de"), max_length=64, source=File({"train": "train.tsv"}, "first", "second", folder=given["folder"]))
rows = load(task, "train")
views = Views([task], {"large": rows}, TextSettings(tokenizer, words, CodeSwitch(("de",))))
items = views.items(0, ("", "_aug"))
plain, switched = items.views[""], items.views["_aug"]
result = {"before": before, "rows": len(rows), "digest": digest(rows), "pairs": [len(plain), len(switched)], "way": type(views._ways["large", "_aug"]).__name__,
          "rates": views.rates(0)["large"], "different": sum(not np.array_equal(plain.ids[plain.starts[i]:plain.starts[i + 1]], switched.ids[switched.starts[i]:switched.starts[i + 1]]) for i in range(0, 4000))}
"""  # noqa: E501


def write_rows(path, n):
    "Pairs of 22 words, 100,000 different words among them, as XNLI has"
    from macular.data.mini_world import lexicon

    known, rng = sorted(lexicon()["de"]), random.Random(1)
    texts = [" ".join(rng.choices(known, k=14)).capitalize() for _ in range(3000)]
    with open(path, "w", encoding="utf-8") as f:
        f.write("first\tsecond\tlabel\n")
        f.writelines(
            f"{texts[i % 3000]} n{i % 100_000}.\t{texts[i * 7 % 2999][:50]}\t{('no', 'maybe', 'yes')[i % 3]}\n"
            for i in range(n)
        )


def test_100_thousand_rows_are_read_and_switched_in_little_memory(tmp_path):
    write_rows(tmp_path / "train.tsv", ROWS)
    found, peak = fresh(READ_AND_SWITCH, folder=str(tmp_path))
    assert found["rows"] == ROWS and found["pairs"] == [ROWS, ROWS] and found["way"] == "ChunkEncoder"
    assert found["different"] > 3000 and 0.3 < found["rates"]["realised"] < 0.6
    assert 25 < peak - found["before"] < 375


# ------------------------------------------------------------------ a history of many steps


def write_history(folder, n, rounds=10):
    "As Macular writes it: a line a step, one a round; some steps twice, as after a crash, and a torn line"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "history.jsonl", "w") as f:
        for r in range(rounds):
            first = r * n // rounds
            for step in [*range(first + 1, (r + 1) * n // rounds + 1)]:
                phase = "discriminator" if step - first <= n // rounds // 2 else "net"
                f.write(
                    f'{{"step": {step}, "round": {r + 1}, "phase": "{phase}", "pass": 1, "batch": {step}, "loss": '
                    f'{1 / step}, "{"lang_disc" if phase == "discriminator" else "task"}": {1 / step}}}\n'
                )
            f.write(
                json.dumps(
                    {
                        "step": (r + 1) * n // rounds,
                        "round": r + 1,
                        "dev": {"xnli": 50.0 + r},
                        "lang_disc": {"accuracy": 0.7, "chance": 0.5},
                    }
                )
                + "\n"
            )
        f.write('{"step": 12, "ro')
    return folder


@contextmanager
def allocated():
    "Megabytes that are allocated at most inside, beyond what was there before"
    tracemalloc.start()
    found = SimpleNamespace()
    try:
        yield found
    finally:
        found.peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()


def test_300_thousand_steps_are_read_in_little_memory(tmp_path, monkeypatch):
    n = 300_000
    folder = write_history(tmp_path / "long", n)
    with allocated() as held:
        steps, rounds = history(folder), rounds_of(folder)
    assert figures._MOST / 2 <= len(steps) <= figures._MOST + 1 and held.peak < 60
    assert [r["round"] for r in rounds] == list(range(1, 11)) and rounds[-1]["dev"] == {"xnli": 59.0}
    assert steps["step"].is_monotonic_increasing and steps["step"].iloc[-1] > n - n / figures._MOST
    share = steps.groupby("round")["phase"].value_counts(normalize=True)
    assert len(share) == 20 and abs(share - 0.5).max() < 0.01, "every phase of every round is seen as long as it is"
    monkeypatch.setattr(figures, "_MOST", n)
    short = write_history(tmp_path / "short", 100_000)
    with allocated() as held:
        assert len(history(short)) == 100_000
    assert held.peak > 60, "the control: all steps of a third of it take more"


def test_a_short_history_is_read_whole(tmp_path):
    folder = write_history(tmp_path, figures._MOST - 12)
    assert list(history(folder)["step"]) == list(range(1, figures._MOST - 11))
    with open(folder / "history.jsonl", "a") as f:
        f.write('\n{"step": 7, "round": 1, "phase": "net", "loss": 9.0}\n')
    assert history(folder).set_index("step")["loss"][7] == 9.0, (
        "what is written later is seen, and the last of equals counts"
    )


# ------------------------------------------------------------------ a notebook stays small

LONG = """
import json
from pathlib import Path
import macular.results.figures, macular.train.run
from macular.train.methods import methods
from test_load import write_history
true, clock = macular.train.run.run, iter(range(10**9))

class Hurried:  # a thousand times it draws, as a real one in six minutes
    monotonic = staticmethod(lambda: next(clock) / 120)

def run(job, watch):
    "The job itself; then its watcher is told 20,000 steps, and its trainings become long ones"
    result = true(job, watch)
    macular.results.figures.time, facts = Hurried, dict(method=methods["finetune"])
    watch("start", facts | dict(folder=Path("x"), steps=20_000, phases=[("net", 20_000)], rows={}, notes=[]))
    for step in range(1, 20_001): watch("step", dict(step=step, of=20_000, round=1, phase="net", batch=step, loss=1 / step, task=1 / step, lang_adv=1 / step))
    watch("round", facts | dict(round=1, dev={"pawsx": 50.0}))
    for t in result.values["trainings"].values(): write_history(result.folder.parent / "trainings" / t["key"], 100_000)
    return result

macular.train.run.run = run
"""  # noqa: E501


@pytest.fixture(scope="module")
def long_report(tmp_path_factory):
    import papermill

    folder = tmp_path_factory.mktemp("report")
    (folder / "long.py").write_text(f"import sys\nsys.path.insert(0, {TESTS!r})\n" + LONG)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # figures are shown, as for a person
        papermill.execute_notebook(
            ROOT / "nbs" / "train.ipynb",
            folder / "report.ipynb",
            progress_bar=False,
            cwd=ROOT,
            parameters=dict(
                task="pawsx",
                method="finetune",
                preset="mini",
                max_train=32,
                rounds=1,
                langs="en",
                extensions=str(folder / "long.py"),
                out=str(folder / "runs"),
            ),
        )
    return folder / "report.ipynb"


def test_the_report_of_a_long_training_is_small(long_report):
    "20,000 steps told to the panel of the job's notebook and 100,000 of each training drawn in its figures"
    assert 50_000 < long_report.stat().st_size < 5_000_000
    cells = [c for c in nbformat.read(long_report, 4).cells if c.cell_type == "code"]
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c.outputs) == 3, (
        "losses, languages and confusions are drawn"
    )
    [cell] = [c for c in cells if "result = run(job" in c.source]
    panels = [o for o in cell.outputs if o.output_type == "display_data"]
    assert len(panels) == 2 and "step 20000 of 20000" in panels[-1].data["text/plain"]
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    assert len(printed.splitlines()) < 12 and "round 1: dev pawsx" in printed


# ------------------------------------------------------------------ nothing is left behind


def here():
    "Count the handles, children, threads, figures and widgets of this process"
    import matplotlib.pyplot as plt
    from ipywidgets.widgets.widget import _instances

    gc.collect()
    return {
        "handles": len(os.listdir("/proc/self/fd")),
        "children": sum(len(p.read_text().split()) for p in Path("/proc/self/task").glob("*/children")),
        "threads": sorted(t.name for t in threading.enumerate()),
        "figures": plt.get_fignums(),
        "widgets": len(_instances),
    }


def tensors():
    import torch

    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


class Failure(Exception):
    pass


def test_twenty_runs_of_which_half_fail_leave_nothing(tmp_path, monkeypatch):
    "Handles, threads, processes, tensors, temporary files; files of runs that are not results"
    scratch, out = tmp_path / "tmp", tmp_path / "runs"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    small = Mini(train=40, dev=30, test=30)

    def one(seed):
        job = check(
            {
                "task": "pawsx",
                "method": "cosda_ml",
                "preset": "mini",
                "backbone": str(toy.backbone("xlmr")),
                "rounds": 1,
                "langs": ["en"],
                "batch_size": 16,
                "max_length": 32,
                "out": str(out),
                "seed": seed,
            }
        )

        def watch(event, facts):
            if seed % 2 and event == ("step", "round", "score")[seed % 3] and facts.get("step", 2) == 2:
                raise Failure

        try:
            run(job, watch, small)
        except Failure:
            return False
        return True

    ended, seen = [], []
    for seed in range(20):
        ended.append(one(seed))
        if seed in (7, 19):
            seen.append(here() | {"tensors": tensors()})
    assert Counter(ended) == {True: 10, False: 10} and seen[0] == seen[1]
    assert not [*scratch.iterdir()] and not [p for p in out.rglob("*") if p.suffix in (".tmp", ".old")]
    assert len([*out.glob("*/result.json")]) == 10


def test_negative_control_what_is_left_behind_is_seen(tmp_path):
    import ipywidgets
    import matplotlib.pyplot as plt

    before = here(), tensors()
    left = [
        open(tmp_path / "a", "w"),  # noqa: SIM115 — left open on purpose
        plt.figure(),
        ipywidgets.IntSlider(),
        subprocess.Popen(["sleep", "60"]),
        threading.Thread(target=(end := threading.Event()).wait, daemon=True),
        *toys(),
    ]
    left[4].start()
    after = here(), tensors()
    assert {name for name in after[0] if after[0][name] != before[0][name]} == set(before[0]) and after[1] == before[
        1
    ] + 1
    left[0].close(), plt.close(left[1]), left[2].close(), left[3].kill(), left[3].wait(), end.set()


def toys():
    import torch

    return [torch.zeros(1)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A finished run on files of its own: rows, dictionaries, a training with a history"
    folder = tmp_path_factory.mktemp("world")
    (folder / "dictionaries").mkdir()
    for lang in ("de", "fr"):
        (folder / "dictionaries" / f"en-{lang}.txt").write_text(
            "".join(f"{w} {lang}{w}\n" for w in "the dog cat house sees small old".split())
        )
    source = 'files = { train = "rows.tsv", dev = "rows.tsv", test = "rows.tsv" }\ntext_a = "a"\ntext_b = "b"\n'
    (folder / "own.toml").write_text(f'name = "own"\nlabels = ["no", "yes"]\nlangs = ["de", "fr"]\n[source]\n{source}')
    (folder / "rows.tsv").write_text(
        "a\tb\tlabel\n"
        + "".join(f"The dog sees a cat {i}.\tThe old house is small.\t{('no', 'yes')[i % 2]}\n" for i in range(48))
    )
    job = check(
        {
            "task": str(folder / "own.toml"),
            "method": "cosda_ml",
            "preset": "mini",
            "backbone": "mini-xlmr",
            "rounds": 1,
            "lexicon_dir": str(folder / "dictionaries"),
            "out": str(folder / "runs"),
        }
    )
    return folder, run(job, lambda event, facts: None).folder


@pytest.fixture
def cell(monkeypatch):
    "A cell somebody looks at; each call runs it again"
    runs = [0]
    monkeypatch.setattr(notebook_views, "_cell", lambda: ("a", runs[0]))
    monkeypatch.setattr(notebook_views, "_open", {})

    def again(make):
        runs[0] += 1
        view = make()
        view._repr_mimebundle_()
        return view

    return again


def views_of(result):
    from macular.results.records import from_lines
    from macular.results.statistics import select
    from macular.ui.board import board, heat_map
    from macular.ui.live import live
    from macular.ui.playground import playground

    control = select(
        from_lines(ROOT / "nbs" / "records" / "control.jsonl"), world="related", dictionary="own", backbone="mini-xlmr"
    )
    return {
        "playground": (30, playground),
        "board": (30, lambda: board(control, task="qam")),
        "heat_map": (8, lambda: heat_map(control, task="qam")),
        "live": (10, lambda: live(result, seconds=0.05)),
        "playground of a run": (30, lambda: playground(run=result)),
    }


@pytest.mark.parametrize("name", ["playground", "board", "heat_map", "live", "playground of a run"])
def test_a_cell_that_is_run_again_and_again_leaves_what_once_leaves(world, cell, name):
    "Widgets, figures, handles and threads; memory"
    times, make = views_of(world[1])[name]
    cell(make).close()
    before = here()
    for _ in range(3):
        view = cell(make)
    memory = resident()
    for _ in range(times - 3):
        view = cell(make)
    assert len(notebook_views._open) == 1 and resident() - memory < 6e6
    view.close()
    for _ in range(100):
        if here() == before:
            break
        time.sleep(0.05)
    assert here() == before


def test_a_run_is_read_once_however_often_its_cell_is_run(world, cell, monkeypatch):
    "Dictionaries, rows and tokenizer; and anew where a file has changed"
    from macular.train import inputs
    from macular.ui import playground

    notebook_views._read.cache_clear()
    playground._tokenizer.cache_clear()
    read = Counter()

    def counting(module, name):
        true = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (read.update([name]), true(*a, **k))[1])

    counting(inputs, "read_lexicon")
    counting(inputs, "load")
    for _ in range(20):
        html = cell(lambda: playground.playground(run=world[1])).html()
    assert read == {"read_lexicon": 1, "load": 1} and playground._tokenizer.cache_info().misses == 1 and "dog" in html
    dictionary = world[0] / "dictionaries" / "en-fr.txt"
    dictionary.write_text(dictionary.read_text().replace("frdog", "chien"))
    view = cell(lambda: playground.playground(run=world[1], langs=("fr",), word=1.0, sentence=1.0))
    assert read == {"read_lexicon": 2, "load": 2} and "chien" in view.html()
    view.close()


def test_a_figure_that_cannot_be_drawn_leaves_none(tmp_path):
    import matplotlib.pyplot as plt

    (tmp_path / "history.jsonl").write_text('{"step": 1, "round": 1, "dev": {"xnli": 50.0}}\n')
    before = plt.get_fignums()
    for _ in range(3):
        with pytest.raises(DataError, match="no steps"):
            curves(tmp_path)
    assert plt.get_fignums() == before


# ------------------------------------------------------------------ processes

SWEEP = """
import sys
sys.path.insert(0, {tests!r})
import fake_jobs
from macular.jobs.engines import Processes, sweep
if __name__ == "__main__": sweep(fake_jobs.many({out!r}, {n}), Processes(2), do=fake_jobs.{do})
"""


def sweeper(out, n, do):
    path = Path(out) / "plan.py"
    path.write_text(SWEEP.format(tests=TESTS, out=str(out), n=n, do=do))
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def family(pid):
    "The processes a process has started, and theirs"
    try:
        found = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    except OSError:
        return []
    return [*found, *(p for child in found for p in family(child))]


def alive(pids):
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "XZ"]


def until(true, seconds):
    "Wait until something is true; return whether it was in time"
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def kill(parent):
    "SIGKILL a sweep; whether its workers are gone five seconds later"
    workers = family(parent.pid)
    parent.kill()
    parent.wait()
    gone = until(lambda: not alive(workers), 5)
    for pid in alive(workers):
        os.kill(pid, signal.SIGKILL)
    return gone


def test_a_plan_whose_parent_is_killed_twenty_times(tmp_path):
    "120 jobs in two processes: each done once, and nobody left after any kill"
    n, rng, done = 120, random.Random(5), lambda: len(fake_jobs.logged(tmp_path, "done"))
    for _ in range(20):
        parent, wanted = sweeper(tmp_path, n, "wait"), done() + rng.randrange(1, 4)
        assert until(lambda wanted=wanted: done() >= wanted, 60), parent.communicate()[1]
        time.sleep(rng.random() * 0.05)
        assert parent.poll() is None and kill(parent)
    assert done() < n, "there was work to kill"
    last = sweeper(tmp_path, n, "wait")
    assert last.wait(120) == 0, last.stderr.read()
    assert done_once(many(tmp_path, n), tmp_path) and done() <= n == len(
        [*tmp_path.glob("done-*/result.json")]
    )  # a kill between a result and its line in the log leaves no line


def test_workers_in_the_middle_of_a_job_go_with_their_parent(tmp_path):
    parent = sweeper(tmp_path, 2, "hang")
    assert until(lambda: len(fake_jobs.logged(tmp_path, "asked")) == 2, 60)
    assert len(alive(family(parent.pid))) >= 2 and kill(parent)


def test_a_worker_that_is_stopped_is_shown_as_silent(tmp_path, monkeypatch, capsys):
    words = [
        "task=pawsx",
        "method=finetune",
        "preset=mini",
        "max_train=64",
        "rounds=1",
        "langs=de",
        "seed=0,1",
        f"out={tmp_path}",
    ]

    def told():
        assert cli.main(["sweep", "status", *words]) == 0
        return capsys.readouterr().out

    parent = sweeper(tmp_path, 2, "hang")
    try:
        assert until(lambda: len(fake_jobs.logged(tmp_path, "asked")) == 2, 60)
        assert "2 running" in told() and "silent" not in told(), "less than a minute"
        first = many(tmp_path, 2)[0]
        os.kill(read_json(place(first) / "state.json")["pid"], signal.SIGSTOP)
        for path in place(first).iterdir():
            os.utime(path, (time.time() - 300,) * 2)
        assert (
            _heartbeat_age(first) >= 300
            and f"silent for 5.0 min: process {read_json(place(first) / 'state.json')['pid']} on " in told()
            and told().count("silent") == 1
        )
    finally:
        for pid in family(parent.pid):
            os.kill(pid, signal.SIGCONT)
        kill(parent)


def test_a_step_is_a_sign_of_life(tmp_path, monkeypatch):
    "Also where nothing is worth a line: the log's time of change moves on"
    [job], seen = many(tmp_path, 1), []

    def fake(job, watch):
        log = place(job) / "log.txt"
        os.utime(log, (time.time() - 100,) * 2)
        seen.append(_heartbeat_age(job))
        watch("step", {"step": 1})
        seen.append(_heartbeat_age(job))
        return SimpleNamespace(folder=place(job))

    monkeypatch.setattr("macular.train.run.run", fake)
    os.makedirs(place(job))
    compute(job)
    assert seen[0] >= 99 and seen[1] < 50 and (place(job) / "log.txt").read_text() == ""


if __name__ == "__main__":
    train_long()
