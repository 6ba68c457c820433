"""Kill a whole job anywhere: the same command goes on, to the same weights, predictions and result, byte for byte.

`python tests/test_resume.py FOLDER LEGS` imports everything once and forks a process for every attempt of every
leg. An attempt is a real job: Macular, both stages, on a few rows of the mini world with a toy encoder. The clock
is set to count steps, so that there is a checkpoint every three of them, and the process shoots itself with SIGKILL
at a place that has a name, or is shot at a random moment. `MACULAR_KILLS=200` asks for that many random kills, in
place of 20."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from macular.store import newest, read_json, read_lines, sha256, verify

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EVERY = 3  # steps between two checkpoints
ROUND = {1: 12, 2: 6}  # steps of a round in stage 1, two tasks, and in stage 2
KILLS = int(os.environ.get("MACULAR_KILLS", 20))


# ------------------------------------------------------------------ where a process dies
class Point:
    "A call at which something happens: before it, or after it; the n-th that `where` is true of"

    def __init__(self, owner, name, n=1, when="before", where=lambda *a, **k: True):
        self.owner, self.name, self.n, self.when, self.where = owner, name, n, when, where

    def set(self, act):
        original, left = getattr(self.owner, self.name), [self.n]

        def patched(*args, **options):
            hit = False
            if self.where(*args, **options):
                left[0] -= 1
                hit = left[0] == 0
            if hit and self.when == "before":
                act()
            if hit and callable(self.when):
                self.when(*args)
            found = original(*args, **options)
            if hit and self.when == "after":
                act()
            return found

        setattr(self.owner, self.name, patched)


def half(path, data):
    "The beginning of a file where a writer puts it, and death"
    path = Path(path)
    path.with_name(f".{path.name}.{os.getpid():016x}.tmp").write_bytes(data[: len(data) // 2])
    die()


def points():
    "The named places of a job, in its order"
    import shutil

    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from macular import store
    from macular.text import encode
    from macular.train import build, checkpoints, evaluate, stages, trainer

    run = sys.modules["macular.train.run"]

    def named(name):
        return lambda path, *_: Path(path).name == name

    def to(name):
        return lambda source, target, *_: Path(target).name.startswith(name)

    def batch(phase, stage):
        return lambda self, *_: self.phase.name == phase and self.phase.steps == (4 if stage == 1 else 2)

    def step(phase, stage, n, when="after"):
        return Point(trainer._Learner, "step", n, when, batch(phase, stage))

    def aug(self, what, *_):
        return what == "_aug"

    def torn(weights, path):
        Path(path).write_bytes(b"torn")
        die()

    def pruned(path, *_, **__):
        next(Path(path).glob("*.safetensors")).unlink()
        die()

    def torn_line(path, record):
        with open(path, "ab") as f:
            f.write(b'{"step": 1')
        die()

    def state(path, *_, **__):
        return Path(path).name.startswith("state-")

    return {
        "augmentation, before": Point(encode.Views, "_tokens", 1, "before", aug),
        "augmentation, between two tasks": Point(
            encode.Views, "_part", 1, "after", lambda self, task, s, *_: s == "_aug"
        ),
        "augmentation, stage 2": Point(encode.Views, "_part", 3, "after", lambda self, task, s, *_: s == "_aug"),
        "features for D": Point(sys.modules["macular.train.build"], "features", 1, "after"),
        **{
            f"D, {name} batch, stage {stage}": step("discriminator", stage, n)
            for stage, ns in ((1, (1, 5, 8)), (2, (1, 3, 4)))
            for name, n in zip(("first", "middle", "last"), ns)
        },
        "between D and net": Point(build.TrainingBatches, "batches", 1),
        "between D and net, round 2": Point(build.TrainingBatches, "batches", 2),
        "between D and net, stage 2": Point(build.TrainingBatches, "batches", 3),
        "net, after backward": Point(Accelerator, "backward", 8 + 2, "after"),
        "net, after the optimizer's step": Point(AcceleratedOptimizer, "zero_grad", 8 + 3),
        "net, round 2": step("net", 1, 6),
        "net, stage 2": step("net", 2, 3),
        "net, last step": step("net", 1, 8),
        "a line of the history half written": Point(checkpoints, "append", 15, torn_line),
        "dev, between two tasks": Point(stages, "probabilities", 1, "after"),
        "end of round, weights being written": Point(
            checkpoints, "save_file", 1, torn, lambda _, path: ".round-" in str(path)
        ),
        "end of round, weights written, state not": Point(
            checkpoints.Checkpoints, "save", 1, "before", lambda self, step, rounds, record: len(rounds) == 1
        ),
        "end of round, state written": Point(
            checkpoints.Checkpoints, "save", 1, "after", lambda self, step, rounds, record: len(rounds) == 1
        ),
        "a checkpoint, first file": Point(checkpoints, "save_file", 1, torn, lambda _, path: ".state-" in str(path)),
        "a checkpoint, last file": Point(checkpoints, "save_file", 8, torn, lambda _, path: ".state-" in str(path)),
        "a checkpoint, before its manifest": Point(store, "write_json", 2, "before", named("manifest.json")),
        "a checkpoint, before it is renamed": Point(os, "rename", 2, "before", to("state-")),
        "a checkpoint, renamed": Point(os, "rename", 3, "after", to("state-")),
        "a checkpoint, an older one half removed": Point(shutil, "rmtree", 1, pruned, state),
        "between the last state and the training's record": Point(
            stages, "write_json", 1, "before", named("training.json")
        ),
        "stage 1 done, stage 2 not begun": Point(stages, "write_json", 1, "after", named("training.json")),
        "stage 2's record half written": Point(store, "write_bytes", 2, half, named("training.json")),
        "scoring, before": Point(evaluate, "probabilities", 1),
        "scoring, between two languages": Point(evaluate, "probabilities", 2),
        "config written": Point(run, "write_json", 1, "after", named("config.json")),
        "predictions half written": Point(run, "write_bytes", 1, half, named("predictions.parquet")),
        "between predictions and result": Point(run, "write_json", 1, "before", named("result.json")),
        "result half written": Point(store, "write_bytes", 1, half, named("result.json")),
        "result not in place": Point(os, "replace", 1, "before", to("result.json")),
        "result written": Point(os, "replace", 1, "after", to("result.json")),
    }


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------ what an attempt forgets (negative controls) or
# meets
def forget(what):
    "A resume that leaves something out"
    from macular.train import checkpoints, trainer

    def without(restore):
        def patched(kept, state):
            step, rounds, record = restore(kept, state)
            for learner in kept.learners:
                if what == "moments":
                    learner.optimizer.state.clear()
                if what == "schedule":
                    learner.done = 0
            return (step - 2, rounds, record) if what == "position" else (step, rounds, record)

        return patched

    if what == "weights":
        checkpoints.load_weights = lambda net, weights: None
    elif what == "chance":
        count = iter(range(10**6))
        trainer.mix = lambda *place: next(count)  # as a generator that nobody restored
    else:
        checkpoints._read_state = without(checkpoints._read_state)


def disturb(*_):
    "Other code draws from every global generator"
    import numpy
    import torch

    random.seed(9), numpy.random.seed(9), torch.manual_seed(9)
    random.random(), numpy.random.rand(3), torch.rand(3)


def elsewhere():
    from macular.train import checkpoints

    machine = checkpoints._machine
    checkpoints._machine = lambda accelerator: machine(accelerator) | {"threads": 2}


def setup():
    "Make what every attempt needs, before the first fork"
    import toy

    from macular.data.mini_world import Mini
    from macular.train import checkpoints, inputs, trainer

    @dataclass(frozen=True)
    class Few(Mini):
        train: int = 16
        dev: int = 10
        test: int = 10

    inputs.Mini = Few
    import macular.cli
    import macular.train.run  # noqa: F401 — found below in sys.modules

    steps, one = [0], trainer._Learner.step

    def counted(self, *args):
        found = one(self, *args)
        steps[0] += 1
        return found

    trainer._Learner.step = counted
    checkpoints.time = SimpleNamespace(monotonic=lambda: float(steps[0]))
    os.environ["MACULAR_CHECKPOINT"] = str(EVERY)
    os.fsync = lambda handle: None  # which is for a loss of power: what a killed process has written is written
    return dict(
        task="pawsx",
        method="macular",
        preset="mini",
        rounds=2,
        batch_size=8,
        max_length=32,
        langs="en,de",
        stage1="pawsx,xnli",
        backbone=str(toy.backbone("xlmr", 0.1)),
    )


def attempt(job, out, leg, n):
    "One process of a leg"
    last = n == len(leg.get("at", []))
    if leg.get("forgets") == "chance" or last and "forgets" in leg:
        forget(leg["forgets"])
    if leg.get("disturbed"):
        disturb()
    if leg.get("elsewhere") and n:
        elsewhere()
    if leg.get("inexact") and last:
        os.environ["MACULAR_INEXACT"] = "1"

    def act():
        os.kill(os.getpid(), getattr(signal, leg.get("signal", "SIGKILL")))

    if not last and leg["at"][n]:
        points()[leg["at"][n]].set(act)
    if leg.get("twice") and not last:
        Point(sys.modules["macular.train.checkpoints"], "_write_state", 1).set(lambda: (act(), time.sleep(60)))
    if leg.get("cli"):
        from macular.cli import main

        return main(["sweep", "run", *(f"{k}={v}" for k, v in (job | {"out": str(out)}).items())])
    from macular.exceptions import MacularError
    from macular.train.config import check
    from macular.train.run import run

    said = []
    try:
        run(
            check(job | {"out": str(out)}),
            lambda event, facts: (said.append(event), leg.get("disturbed") and disturb()),
        )
    except MacularError as e:
        (out / "said.txt").write_text(str(e))
        return e.exit_code
    (out.parent / f"{out.name}.events.json").write_text(json.dumps(Counter(said)))
    return 0


def forked(do, log):
    "A process that does something and ends with its exit code; its words go to a file"
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "ab") as f:
            for stream in (1, 2):
                os.dup2(f.fileno(), stream)
        code = do()
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def walk(job, folder, name, leg):
    "All attempts of a leg; what each ended with is left beside it"
    out = folder / name
    out.mkdir()
    codes, log = [], folder / f"{name}.log"
    if "random" in leg:
        dice, kills = random.Random(leg["random"]), 0
        while kills < leg["kills"]:
            pid = forked(lambda: attempt(job, out, leg, 0), log)
            time.sleep(dice.random() * leg["seconds"])
            os.kill(pid, signal.SIGKILL)
            codes.append(ended(pid))
            kills += codes[-1] == -signal.SIGKILL
            if codes[-1] != -signal.SIGKILL:
                if codes[-1] != 0 or len(codes) > 3 * leg["kills"]:
                    break
                if kills < leg["kills"]:
                    (
                        shutil.move(out, folder / f"{name} {len(list(folder.glob(name + ' *')))}"),
                        out.mkdir(),
                    )  # done; another one
        codes.append(ended(forked(lambda: attempt(job, out, {}, 0), log)))
    else:
        for n in range(len(leg.get("at", [])) + 1):
            if leg.get("moved") and n == 1:
                shutil.copytree(out, folder / f"{name} copy")
                shutil.rmtree(out)
                shutil.move(folder / f"{name} copy", out := folder / f"{name} there")
            codes.append(ended(forked(lambda out=out, n=n: attempt(job, out, leg, n), log)))
    (folder / f"{name}.codes.json").write_text(json.dumps(codes))
    return 0


def main(folder, legs):
    job, busy = setup(), {}
    (folder / "first").mkdir()
    attempt(job, folder / "first", {}, 0)  # what is made once in a process is made before the first fork
    gc.collect()
    gc.freeze()
    began = time.monotonic()
    walk(job, folder, "whole", {})
    seconds, before = time.monotonic() - began, untimed(tree(folder / "whole"))
    code = ended(forked(lambda: attempt(job, folder / "whole", {}, 0), folder / "again.log"))
    (folder / "again.json").write_text(
        json.dumps(
            {
                "code": code,
                "same": untimed(tree(folder / "whole")) == before,
                "said": read_json(folder / "whole.events.json"),
            }
        )
    )
    for name, leg in json.loads(Path(legs).read_text()).items():
        if len(busy) >= min(2, os.cpu_count()):
            busy.pop(os.waitpid(-1, 0)[0])
        if "random" in leg:
            leg["seconds"] = seconds * (0.9 if os.cpu_count() > 1 else 1.5)
        busy[forked(lambda name=name, leg=leg: walk(job, folder, name, leg), folder / "legs.log")] = name
    while busy:
        busy.pop(os.waitpid(-1, 0)[0])


# ------------------------------------------------------------------ what is compared
def tree(out):
    return {
        str(p.relative_to(out)): (p.stat().st_mtime_ns, p.stat().st_size, p.is_file() and sha256(p))
        for p in sorted(out.rglob("*"))
    }


def untimed(found):
    "The same without the time at which a run was last asked for"
    job = {name.removesuffix("/result.json") for name in found if name.endswith("/result.json")}
    free = job | {f"{name}/environment.json" for name in job}
    return {name: about for name, about in found.items() if name not in free}


def files(out):
    "Every file that must not differ, by its hash"
    free = ("environment.json", "history.jsonl", "seconds.json", ".lock", ".writer", "said.txt")
    found = {
        str(p.relative_to(out)): p
        for p in sorted(Path(out).rglob("*"))
        if p.is_file() and p.name not in free and "jobs" not in p.parts
    }
    return {name: sha256(p) for name, p in found.items()}


def trainings(out):
    "Stage 1 and stage 2"
    return sorted((Path(out) / "trainings").iterdir(), key=lambda p: -len(read_lines(p / "history.jsonl")))


def history(folder):
    "The log's lines by step; a step that was taken twice went the same way"
    found = {}
    for line in read_lines(folder / "history.jsonl"):
        assert found.setdefault((line["step"], "phase" in line), line) == line
    return dict(sorted(found.items()))


def again(out):
    return sum(
        sum(
            n - 1 for n in Counter(line["step"] for line in read_lines(f / "history.jsonl") if "phase" in line).values()
        )
        for f in trainings(out)
    )


def equal(folder, name):
    one, two = folder / "whole", folder / name
    return files(one) == files(two) and all(
        history(a) == history(b) for a, b in zip(trainings(one), trainings(two), strict=True)
    )


NAMED = (
    "augmentation, before",
    "augmentation, between two tasks",
    "augmentation, stage 2",
    "features for D",
    "D, first batch, stage 1",
    "D, middle batch, stage 1",
    "D, last batch, stage 1",
    "D, first batch, stage 2",
    "D, middle batch, stage 2",
    "D, last batch, stage 2",
    "between D and net",
    "between D and net, round 2",
    "between D and net, stage 2",
    "net, after backward",
    "net, after the optimizer's step",
    "net, round 2",
    "net, stage 2",
    "net, last step",
    "a line of the history half written",
    "dev, between two tasks",
    "end of round, weights being written",
    "end of round, weights written, state not",
    "end of round, state written",
    "a checkpoint, first file",
    "a checkpoint, last file",
    "a checkpoint, before its manifest",
    "a checkpoint, before it is renamed",
    "a checkpoint, renamed",
    "a checkpoint, an older one half removed",
    "between the last state and the training's record",
    "stage 1 done, stage 2 not begun",
    "stage 2's record half written",
    "scoring, before",
    "scoring, between two languages",
    "config written",
    "predictions half written",
    "between predictions and result",
    "result half written",
    "result not in place",
    "result written",
)
FORGETS = ("moments", "schedule", "position", "weights", "chance")
SIGNALLED = (
    "D, middle batch, stage 1",
    "net, after backward",
    "features for D",
    "dev, between two tasks",
    "a checkpoint, before it is renamed",
    "scoring, between two languages",
)
MID = "net, round 2"
LEGS = {
    **{name: {"at": [name]} for name in NAMED},
    "three times": {"at": ["D, middle batch, stage 1", "net, round 2", "D, middle batch, stage 2"]},
    "twice in one pass": {"at": ["D, first batch, stage 1", "D, middle batch, stage 1"]},
    "disturbed": {"at": [MID, "net, stage 2"], "disturbed": True},
    "moved": {"at": [MID], "moved": True},
    "elsewhere": {"at": [MID, ""], "elsewhere": True, "inexact": True},
    "chance, whole": {"forgets": "chance"},
    **{f"forgets {what}": {"at": [MID], "forgets": what} for what in FORGETS},
    **{f"SIGTERM {n}": {"at": [name], "signal": "SIGTERM", "cli": True} for n, name in enumerate(SIGNALLED)},
    "SIGINT": {"at": [MID], "signal": "SIGINT", "cli": True},
    "SIGTERM twice": {"at": [MID], "signal": "SIGTERM", "cli": True, "twice": True},
    "SIGTERM without a command line": {"at": [MID], "signal": "SIGTERM"},
    "SIGINT without a command line": {"at": [MID], "signal": "SIGINT"},
    **{f"random {n}": {"random": n, "kills": 4} for n in range(-(-KILLS // 4))},
}


@pytest.fixture(scope="module")
def legs(tmp_path_factory):
    "The folder in which all legs were run"
    folder = tmp_path_factory.mktemp("legs")
    (folder.parent / "legs.json").write_text(json.dumps(LEGS))
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(folder.parent / "legs.json")],
        capture_output=True,
        text=True,
        timeout=3600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def codes(legs, name):
    found = json.loads((legs / f"{name}.codes.json").read_text())
    assert found[-1] == 0, (found, (legs / f"{name}.log").read_text()[-3000:])
    return found


# ------------------------------------------------------------------ killed
def test_the_job_has_the_steps_these_tests_kill_at(legs):
    assert [len([k for k in history(f) if k[1]]) for f in trainings(legs / "whole")] == [
        2 * ROUND[1],
        2 * ROUND[2],
    ] and again(legs / "whole") == 0
    [result] = (legs / "whole").glob("*/result.json")
    assert read_json(result)["status"] == "complete" and not any(
        "bit-identical" in note for note in read_json(result)["notes"]
    )
    for f in trainings(legs / "whole"):
        assert len(list(f.glob("state-*"))) == 1 and verify(newest(f, "state"))


@pytest.mark.parametrize("name", [*NAMED, "three times", "twice in one pass"])
def test_killed_at_a_named_place(legs, name):
    """SIGKILL there, then the same command: every file has the same bytes, and no more steps are taken again than lie
    between two checkpoints"""
    kills = len(LEGS[name]["at"])
    assert codes(legs, name) == [-signal.SIGKILL] * kills + [0]
    assert equal(legs, name) and again(legs / name) <= EVERY * kills
    assert not [p for p in (legs / name).rglob(".*") if p.name not in (".lock", ".writer")], (
        "nothing half written stays"
    )


def test_work_was_lost_and_not_much(legs):
    "Kills between two checkpoints cost steps, at most so many; a kill right after a checkpoint none"
    lost = {name: again(legs / name) for name in NAMED}
    assert (
        max(lost.values()) == EVERY
        and lost["end of round, state written"] == lost["stage 1 done, stage 2 not begun"] == 0
        and sum(n > 0 for n in lost.values()) > 10
    )


def test_killed_at_random(legs):
    names = [name for name in LEGS if name.startswith("random")]
    kills = {name: sum(code == -signal.SIGKILL for code in codes(legs, name)) for name in names}
    assert sum(kills.values()) >= KILLS
    for name in names:
        done = [name, *(p.name for p in legs.glob(name + " *") if p.is_dir())]
        assert all(equal(legs, one) for one in done), name
        assert sum(again(legs / one) for one in done) <= EVERY * kills[name]


@pytest.mark.parametrize("what", FORGETS)
def test_negative_controls(legs, what):
    "A resume that leaves something out ends elsewhere, and the comparison sees it"
    name, whole = f"forgets {what}", legs / ("chance, whole" if what == "chance" else "whole")
    found = json.loads((legs / f"{name}.codes.json").read_text())
    assert found[0] == -signal.SIGKILL
    assert found[1] != 0 or files(legs / name) != files(whole)


def test_disturbed_generators_change_nothing(legs):
    assert codes(legs, "disturbed") == [-signal.SIGKILL] * 2 + [0] and equal(legs, "disturbed")


def test_a_copy_of_a_half_done_folder_goes_on(legs):
    assert codes(legs, "moved") == [-signal.SIGKILL, 0] and not (legs / "moved").exists() and equal(legs, "moved there")
    for p in (legs / "moved there").rglob("*"):
        if p.is_file() and p.name != "environment.json":
            assert str(legs).encode() not in p.read_bytes(), p


def test_another_machine_is_refused_unless_asked_for(legs):
    "By both names; and then the result says so"
    assert codes(legs, "elsewhere") == [-signal.SIGKILL, 4, 0]
    said = (legs / "elsewhere" / "said.txt").read_text()
    assert "threads 1, here 2" in said and "MACULAR_INEXACT=1" in said and "step 21" in said and len(said) <= 1000
    [result] = (legs / "elsewhere").glob("*/result.json")
    assert any(
        "Macular-NoTS: resumed at step 21 on another machine (threads 1, here 2): not bit-identical" in note
        for note in read_json(result)["notes"]
    )


# ------------------------------------------------------------------ asked to end
@pytest.mark.parametrize("name", SIGNALLED)
def test_terminated(legs, name):
    "Saved first; then the command line ends with 143, and not one step is taken again"
    leg = f"SIGTERM {SIGNALLED.index(name)}"
    assert codes(legs, leg) == [143, 0] and equal(legs, leg) and again(legs / leg) == 0


def test_interrupted(legs):
    assert codes(legs, "SIGINT") == [130, 0] and equal(legs, "SIGINT") and again(legs / "SIGINT") == 0


def test_a_second_signal_ends_at_once(legs):
    "In the midst of saving; what was saved before is gone on with"
    assert codes(legs, "SIGTERM twice") == [143, 0] and equal(legs, "SIGTERM twice")


def test_a_program_ends_as_the_signal_ends_it(legs):
    for name, code in (("SIGTERM", -signal.SIGTERM), ("SIGINT", 130)):
        leg = f"{name} without a command line"
        assert codes(legs, leg) == [code, 0] and equal(legs, leg) and again(legs / leg) == 0


def test_who_may_listen(monkeypatch):
    "The main thread; SIGINT not in a notebook; nobody to what is ignored; and all is put back, also by an error"
    from macular.process import SignalNote, _wanted

    assert set(_wanted()) == {signal.SIGTERM, signal.SIGINT}
    found = []
    thread = threading.Thread(target=lambda: found.append(_wanted()))
    thread.start(), thread.join()
    assert found == [[]]
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    assert _wanted() == [signal.SIGTERM]
    monkeypatch.undo()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert _wanted() == [signal.SIGTERM]
    signal.signal(signal.SIGINT, before)
    stood = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), SignalNote():
        raise ZeroDivisionError
    with SignalNote() as heard:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.number == signal.SIGTERM and signal.getsignal(signal.SIGINT) is stood[1]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == stood


# ------------------------------------------------------------------ done
def test_started_again_after_the_end_changes_nothing(legs):
    "Not one file, by content, time or place (the result's time alone: tables take the newest); and it says so"
    assert read_json(legs / "again.json") == {"code": 0, "same": True, "said": {"data": 1, "found": 2, "already": 1}}, (
        legs / "again.log"
    ).read_text()[-2000:]


# ------------------------------------------------------------------ two states, one of them whole
def trained(folder, stop=None, rounds=2, **loop):
    "A small training in this process, stopped after a step; the steps it took"
    from test_trainer import ready

    from macular.exceptions import Stopped
    from macular.train.trainer import Loop, fit

    built, numbers = ready()
    steps = []

    def on_step(line):
        steps.append(line["step"])
        if line["step"] == stop:
            (folder / "control").write_text("stop")

    with suppress(Stopped):
        fit(built.phases, Loop(rounds, numbers.seed, **loop), folder=folder, on_step=on_step)
    return steps


def names(folder):
    return sorted(p.name for p in folder.glob("state-*"))


def damage(state):
    path = state / "net.optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_two_states_are_kept_and_one_in_the_end(tmp_path):
    trained(tmp_path, stop=14, every=0)
    assert names(tmp_path) == ["state-13", "state-14"] and all(verify(tmp_path / n) for n in names(tmp_path))
    assert trained(tmp_path)[0] == 15 and names(tmp_path) == ["state-18"]


def test_a_damaged_state_gives_way_to_the_one_before_and_two_to_the_beginning(tmp_path):
    trained(tmp_path, stop=14, every=0)
    damage(tmp_path / "state-14")
    with pytest.warns(UserWarning, match="state-14 is damaged; the training resumes from state-13"):
        assert trained(tmp_path, stop=15)[0] == 14
    assert verify(newest(tmp_path, "state")) and newest(tmp_path, "state").name == "state-15"
    for n in names(tmp_path):
        damage(tmp_path / n)
    with pytest.warns(UserWarning, match="the training starts again"):
        assert trained(tmp_path)[0] == 1
    trained(tmp_path / "whole")
    assert files(tmp_path / "whole") == {k: v for k, v in files(tmp_path).items() if not k.startswith("whole")}


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_never_less_than_one_whole_state(tmp_path, monkeypatch, before):
    "At every removal there is a newer state that is what was written"
    from macular.train import checkpoints

    seen, remove = [], shutil.rmtree

    def watched(path, **options):
        if Path(path).name.startswith("state-"):
            seen.append(int(newest(tmp_path, "state").name[6:]) > int(Path(path).name[6:]))
        remove(path, **options)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", watched)
    trained(tmp_path, stop=5 + before, every=0)
    assert seen and all(seen)


def test_older_states_that_a_kill_left_at_the_end_are_removed(tmp_path):
    "Killed after the last state was written, and before the one before it was removed"
    folder = tmp_path / "training"
    trained(folder, stop=17, every=0)
    shutil.copytree(folder / "state-17", tmp_path / "older")
    assert trained(folder) == [18] and names(folder) == ["state-18"]
    shutil.move(tmp_path / "older", folder / "state-17")
    assert trained(folder) == [] and names(folder) == ["state-18"]


def test_another_trainings_state_is_neither_read_nor_removed(tmp_path):
    from macular.exceptions import StorageError

    trained(tmp_path, stop=8)
    before = files(tmp_path)
    with pytest.raises(StorageError, match="another training: rounds 2, here 3"):
        trained(tmp_path, rounds=3)
    assert files(tmp_path) == before


def test_another_number_of_threads(tmp_path):
    "Two instead of one: refused by both numbers; asked for, it is remarked on, and the remark stays"
    import torch

    from macular.exceptions import SetupError
    from macular.train.checkpoints import resume_notes

    trained(tmp_path, stop=8)
    before, threads = files(tmp_path), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(SetupError, match=f"threads {threads}, here {threads + 1}.*MACULAR_INEXACT"):
            trained(tmp_path)
        assert files(tmp_path) == before and resume_notes(tmp_path) == []
        assert trained(tmp_path, stop=12, exact=False)[0] == 9
    finally:
        torch.set_num_threads(threads)
    trained(tmp_path, exact=False)
    assert [r[:26] for r in resume_notes(tmp_path)] == ["resumed at step 8 on anoth", "resumed at step 12 on anot"]


def test_a_state_of_an_older_version_is_read(tmp_path):
    "It says neither course nor machine"
    from macular.store import sealed_folder, write_json

    trained(tmp_path, stop=8)
    with sealed_folder(tmp_path / "state-8") as aside:
        for p in (tmp_path / "state-8").glob("*.safetensors"):
            shutil.copy(p, aside)
        write_json(
            aside / "position.json",
            {
                k: v
                for k, v in read_json(tmp_path / "state-8" / "position.json").items()
                if k not in ("course", "machine")
            },
        )
    assert trained(tmp_path)[0] == 9
    trained(tmp_path / "whole")
    assert files(tmp_path / "whole") == {k: v for k, v in files(tmp_path).items() if not k.startswith("whole")}


def test_no_room(tmp_path, monkeypatch):
    "Told before the first step, with both numbers; what is there already is not counted again"
    from macular.exceptions import StorageError
    from macular.train import checkpoints

    usage = shutil.disk_usage(tmp_path)

    def left(free):
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=free))

    left(1000)
    with pytest.raises(StorageError, match="needs .* MB .* there are 0 MB. Nothing was started"):
        trained(tmp_path)
    assert not list(tmp_path.iterdir())
    left(10**9)
    trained(tmp_path, stop=17, every=0)
    state = sum(p.stat().st_size for p in (tmp_path / "state-17").iterdir())
    left(2 * state)
    assert trained(tmp_path) == [18]


@pytest.mark.parametrize(
    "said,problem", [("soon", "a number of seconds"), ("-1", "0 or more"), ("nan", "0 or more"), ("inf", "0 or more")]
)
def test_the_environment_is_checked_first(tmp_path, monkeypatch, said, problem):
    from macular.exceptions import ParameterError
    from macular.train import inputs
    from macular.train.config import Job
    from macular.train.run import run

    monkeypatch.setenv("MACULAR_CHECKPOINT", said)
    monkeypatch.setattr(inputs, "load", lambda *a, **k: pytest.fail("rows were read"))
    with pytest.raises(ParameterError, match=problem):
        run(Job(preset="mini", task="pawsx", out=str(tmp_path)))


# ------------------------------------------------------------------ papermill and its kernel
OWN = """name = "own"
labels = ["no", "yes"]
langs = ["en"]

[source]
files = {train = "train.tsv", dev = "dev.tsv"}
text_a = "a"
text_b = "b"
label = "label"
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A job of a hundred steps on a task of one's own, and what it leaves when nothing happens to it"
    import toy

    from macular.train.config import check
    from macular.train.run import run

    folder = tmp_path_factory.mktemp("small")
    (folder / "own.toml").write_text(OWN)
    for split, n in (("train", 64), ("dev", 12)):
        (folder / f"{split}.tsv").write_text(
            "a\tb\tlabel\n"
            + "".join(
                f"{x}\t{y}\t{'yes' if i % 2 else 'no'}\n"
                for i, (x, y) in enumerate(zip(toy.rows("toy2", n)["text_a"], toy.rows("toy2", n)["text_b"]))
            )
        )
    shutil.copytree(toy.backbone("xlmr", 0.1), folder / "backbone")
    job = dict(
        task=str(folder / "own.toml"),
        method="finetune",
        preset="mini",
        rounds=6,
        batch_size=4,
        max_length=32,
        backbone=str(folder / "backbone"),
    )
    run(check(job | {"out": str(folder / "whole")}), lambda event, facts: None)
    return folder, job


def lines_in(out):
    return sum(len(read_lines(p)) for p in Path(out).glob("trainings/*/history.jsonl"))


def kernel_of(process, patience=60):
    "The kernel papermill starts, waited for: the lines counted may be an older kernel's"
    import psutil

    until = time.monotonic() + patience
    while time.monotonic() < until:
        if found := [c.pid for c in psutil.Process(process.pid).children() if "ipykernel" in " ".join(c.cmdline())]:
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"{process.pid} started no kernel in {patience} s")


def test_papermill_and_its_kernel_are_killed(small, tmp_path):
    """`macular train` is asked to end; papermill's kernel is killed; papermill is killed, and started again at once,
    while the old kernel may still be at it; both are killed. What is left is a whole job."""
    folder, job = small
    words, out, here = job | {"out": str(tmp_path / "runs")}, tmp_path / "runs", Path(sys.executable).parent
    mill = [
        here / "papermill",
        ROOT / "nbs" / "train.ipynb",
        tmp_path / "report.ipynb",
        *(w for k, v in words.items() for w in ("-p", k, str(v))),
    ]
    typed = [here / "macular", "train", *(f"{k}={v}" for k, v in words.items()), "--report", tmp_path / "report.ipynb"]

    def start(command, until=None):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"MACULAR_CHECKPOINT": "0", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        threading.Thread(target=lambda: said.append(process.stdout.read()), daemon=True).start()
        before = lines_in(out)
        while until and lines_in(out) < before + until and process.poll() is None:
            time.sleep(0.005)
        assert not until or process.poll() is None, said
        return process

    def numbered():
        return max(int(p.name[6:]) for p in out.glob("trainings/*/state-*"))

    said = []
    asked = start(typed, 10)
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(120) == 143
    assert numbered() == max(line["step"] for p in out.glob("trainings/*/history.jsonl") for line in read_lines(p)), (
        "saved where it stood"
    )
    first = start(mill, 12)
    os.kill(kernel_of(first), signal.SIGKILL)
    assert first.wait(120) not in (0, None)
    second = start(mill, 12)
    os.kill(second.pid, signal.SIGKILL)
    third = start(mill, 12)
    pair = [kernel_of(third), third.pid]
    for pid in pair:
        os.kill(pid, signal.SIGKILL)
    assert third.wait(120) == -signal.SIGKILL and not list(out.glob("*/result.json"))
    last = start(mill)
    assert last.wait(300) == 0, said[-1][-3000:]
    whole = files(folder / "whole")
    assert files(out) == whole and history(trainings(out)[0]) == history(trainings(folder / "whole")[0])
    assert again(out) <= 3, "a step for each kill"


def test_a_sweep_of_processes_saves_before_it_ends(small, tmp_path):
    folder, job = small
    out = tmp_path / "runs"
    command = [
        Path(sys.executable).parent / "macular",
        "sweep",
        "run",
        *(f"{k}={v}" for k, v in (job | {"out": str(out)}).items()),
        "--engine",
        "processes",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"MACULAR_CHECKPOINT": "3600", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    while lines_in(out) < 10 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said[-2000:]
    [training] = trainings(out)
    assert (
        newest(training, "state").name
        == f"state-{max(line['step'] for line in read_lines(training / 'history.jsonl'))}"
    )
    from macular.train.config import check
    from macular.train.run import run

    run(check(job | {"out": str(out)}), lambda event, facts: None)
    assert files(out) == files(folder / "whole") and again(out) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
