"""Kill it, stop it, pause it, poison it: a training ends in the same bytes, or says why it does not.

Kills are real: `python tests/test_trainer.py FOLDER LEGS` imports everything once, forks a process for each attempt
of each leg, and the process shoots itself with SIGKILL where the leg says. The tests then compare what the legs
left on disk."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from macular.exceptions import NumericError, Stopped
from macular.store import newest, read_lines, sha256, verify
from macular.train import checkpoints, trainer
from macular.train.methods import methods
from macular.train.trainer import Loop, Phase, fit

# with ten rows a round of "macular" is D 1-6 (two passes of three batches) and the net 7-9; the second one 10-15 and
# 16-18
LAST, D_ENDS, ROUND_ENDS = 18, (6, 15), (9, 18)


def ready(name="macular", seed=3, rounds=2):
    "A row with dropout in float32, so that chance and rounding take part"
    row, numbers = methods[name], toy.recipe(seed=seed, rounds=rounds)
    return toy.made(row, toy.for_row(row, dropout=0.1), numbers, double=False), numbers


def run(folder, built=None, numbers=None, **options):
    "Train, and return the records with a number that only these weights have"
    if built is None:
        built, numbers = ready(**{k: options.pop(k) for k in ("name", "seed") if k in options})

    def on_round(round):
        return {"weights": sum(p.double().abs().sum().item() for p in built.net.parameters())}

    return fit(
        built.phases,
        Loop(numbers.rounds, numbers.seed),
        folder=folder,
        on_round=options.pop("on_round", on_round),
        **options,
    )


def files(folder):
    "Every file a training keeps for later, by its hash; log and time apart, and what a killed writer left aside"
    names = {
        str(p.relative_to(folder)): p
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and p.name not in ("history.jsonl", "seconds.json")
    }
    return {name: sha256(p) for name, p in names.items() if not name.startswith(".")}


def history(folder):
    "The log's lines by step, the last of equals; a step that was taken twice must have gone the same way"
    found = {}
    for line in read_lines(folder / "history.jsonl"):
        assert found.setdefault((line["step"], "phase" in line), line) == line
    return found


# ------------------------------------------------------------------ legs
def die():
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder, leg, kill):
    """One process of a leg: `kill` is a step, `round` for the end of the first one, or `save-n` for the n-th weights
    file"""

    def at_step(line):
        if line["step"] == kill:
            die()

    options = {"on_step": at_step}
    if kill == "round":
        options["on_round"] = lambda round: die()
    if str(kill).startswith("save-"):
        left, save = [int(kill[5:])], checkpoints.save_file

        def save_or_die(*args):
            left[0] -= 1
            if left[0] == 0:
                Path(args[1]).write_bytes(b"torn")
                die()
            save(*args)

        checkpoints.save_file = save_or_die
    records = run(folder, name=leg.get("row", "macular"), seed=leg.get("seed", 3), **options)
    (folder.parent / f"{folder.name}.json").write_text(json.dumps(records))


def main(folder, legs):
    run(None)  # what is made once in a process is made before the first fork
    gc.collect()
    gc.freeze()
    for name, leg in json.loads(legs).items():
        (folder / name).mkdir()
        for kill in [*leg.get("kills", []), None]:
            pid = os.fork()
            if pid == 0:
                try:
                    attempt(folder / name, leg, kill)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == (-signal.SIGKILL if kill is not None else 0), f"{name}, {kill}: {status}"


KILLS = {
    "first step": [1],
    "D": [4],
    "end of D": [6],
    "net": [8],
    "end of round": [9],
    "between rounds": ["round"],
    "start of round 2": [10],
    "D, round 2": [13],
    "net, round 2": [17],
    "last step": [18],
    "again and again": [2, 8, 12, 12, 16],
    **{f"while writing file {n}": [f"save-{n}"] for n in (1, 2, 3, 6, 7, 12)},
}


@pytest.fixture(scope="module")
def legs(tmp_path_factory):
    "The folder in which all legs were run, and one where another process ran some of them again"

    def start(name, hashseed, legs):
        folder = tmp_path_factory.mktemp(name)
        return folder, subprocess.Popen(
            [sys.executable, __file__, str(folder), json.dumps(legs)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": hashseed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    whole = {"whole": {}, "nots": {"row": "macular_nots"}}
    started = [
        start(
            "one", "1", whole | {"other seed": {"seed": 4}} | {name: {"kills": kills} for name, kills in KILLS.items()}
        ),
        start("two", "2", whole),
    ]
    for _, process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return [folder for folder, _ in started]


def test_a_round_has_the_steps_these_tests_kill_at(legs):
    lines = history(legs[0] / "whole")
    phases = [lines[step, True]["phase"] for step in range(1, LAST + 1)]
    assert phases == 2 * (6 * ["discriminator"] + 3 * ["net"]) and [k for k in lines if not k[1]] == [
        (n, False) for n in ROUND_ENDS
    ]
    kept = files(legs[0] / "whole")
    assert {name.split("/")[0] for name in kept} == {"round-1", "round-2", f"state-{LAST}"} and len(kept) == 3 + 3 + 6


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_continued(legs, name):
    "SIGKILL, then the same command: the same bytes in every file, the same records, the same log"
    whole, killed = legs[0] / "whole", legs[0] / name
    assert files(killed) == files(whole)
    assert json.loads((legs[0] / f"{name}.json").read_text()) == json.loads((legs[0] / "whole.json").read_text())
    assert history(killed) == history(whole)


@pytest.mark.parametrize("name", [name for name in KILLS if name.startswith("while writing")])
def test_nothing_half_written_stays(legs, name):
    assert sorted(p.name for p in (legs[0] / name).iterdir()) == sorted(p.name for p in (legs[0] / "whole").iterdir())


def test_kills_did_happen(legs):
    "Steps were taken again after a kill; after the end of a round no more than its last save"

    def taken(name):
        return sum("phase" in line for line in read_lines(legs[0] / name / "history.jsonl"))

    assert (
        taken("whole") == LAST
        and taken("net") == LAST + 8
        and taken("net, round 2") == LAST + 8
        and taken("start of round 2") == LAST + 1
    )
    assert taken("again and again") == LAST + 2 + 8 + 3 + 3 + 7


@pytest.mark.parametrize("name", ["whole", "nots"])
def test_two_processes_and_two_hash_seeds(legs, name):
    one, two = legs
    assert files(one / name) == files(two / name) and history(one / name) == history(two / name)


def test_another_seed_is_another_training(legs):
    one, other = files(legs[0] / "whole"), files(legs[0] / "other seed")
    assert one.keys() == other.keys() and not any(one[n] == other[n] for n in one if n.endswith("net.safetensors"))


def test_this_process_agrees(legs, tmp_path):
    assert run(tmp_path) == json.loads((legs[0] / "whole.json").read_text()) and files(tmp_path) == files(
        legs[0] / "whole"
    )


# ------------------------------------------------------------------ seeds
def test_the_seed_reaches_everything():
    "Heads and D, order, switching and dropout, each by itself"
    row, stuff = methods["macular_nots"], toy.for_row(methods["macular_nots"])
    built = {seed: toy.made(row, stuff, toy.recipe(seed=seed), redrawn=False) for seed in (3, 4)}
    for pick in (
        lambda b: toy.state(b.net.heads[0])["weight"],
        lambda b: toy.state(b.phases[0].trains)["0.weight"],
        lambda b: b.phases[1].data(0)[0]["task"],
        lambda b: torch.from_numpy(b.views[0].items(0, ("_aug",)).views["_aug"].ids[:200].astype(int)),
    ):
        assert not torch.equal(pick(built[3]), pick(built[4]))
    drawn = []
    for seed in (3, 3, 4):
        lines = []
        net = torch.nn.Dropout(0.5)
        net.numbers = torch.nn.Parameter(torch.arange(64.0))
        phase = Phase("net", net, lambda b, net=net: (net(net.numbers).sum(), {}), lambda round: [{}], 1, 1, lr=1e-9)
        fit([phase], Loop(1, seed), on_step=lines.append)
        drawn.append(lines[0]["loss"])
    assert drawn[0] == drawn[1] != drawn[2]


# ------------------------------------------------------------------ stop and pause
@pytest.mark.parametrize("step", range(1, LAST + 1))
def test_stopped_and_continued(legs, tmp_path, step):
    "Through the control file after any step, not one step is taken twice; also where a phase or a round ends"

    def ask(line):
        if line["step"] == step:
            (tmp_path / "control").write_text("stop\n")

    with pytest.raises(Stopped, match=f"step {step}\\b"):
        run(tmp_path, on_step=ask)
    assert not (tmp_path / "control").exists()
    lines = []
    assert run(tmp_path, on_step=lines.append) == json.loads((legs[0] / "whole.json").read_text())
    assert [line["step"] for line in lines] == list(range(step + 1, LAST + 1))
    assert files(tmp_path) == files(legs[0] / "whole") and history(tmp_path) == history(legs[0] / "whole")


def test_paused_and_released(legs, tmp_path):
    control, seen = tmp_path / "control", []

    def ask(line):
        seen.append((line["step"], time.monotonic()))
        if line["step"] == 8:
            control.write_text("pause")
            threading.Timer(0.7, control.unlink).start()

    run(tmp_path, on_step=ask)
    waits = [b - a for (_, a), (_, b) in zip(seen, seen[1:])]
    assert waits[7] >= 0.6 and [s for s, _ in seen] == list(range(1, LAST + 1))
    assert files(tmp_path) == files(legs[0] / "whole")


def test_a_pause_saves_and_ends_with_its_process(legs, tmp_path):
    "Killed while it waits: nothing is lost, and the same command does not wait again"
    folder = tmp_path / "killed"
    pid = os.fork()
    if pid == 0:

        def ask(line):
            if line["step"] == 8:
                (folder / "control").write_text("pause")

        run(folder, on_step=ask)
        os._exit(1)
    until = time.monotonic() + 60
    while not (folder / "state-8").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / "control").read_text() == "pause"
    lines = []
    run(folder, on_step=lines.append)
    assert [line["step"] for line in lines] == list(range(9, LAST + 1)) and files(folder) == files(legs[0] / "whole")


def test_the_time_of_a_training_is_that_of_all_its_processes(tmp_path, monkeypatch):
    "A second a step; the pause of an hour is none of it"
    clock = [0.0]
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(
        trainer,
        "time",
        SimpleNamespace(
            monotonic=lambda: clock[0],
            sleep=lambda s: (clock.__setitem__(0, clock[0] + 3600), (tmp_path / "control").unlink(missing_ok=True)),
        ),
    )

    def tick(line):
        clock[0] += 1
        if line["step"] in (7, 12):
            (tmp_path / "control").write_text({7: "pause", 12: "stop"}[line["step"]])

    with pytest.raises(Stopped):
        run(tmp_path, on_step=tick)
    assert checkpoints.training_seconds(tmp_path) == pytest.approx(12, abs=0.3)
    clock[0] += 5000
    run(tmp_path, on_step=tick)
    assert checkpoints.training_seconds(tmp_path) == pytest.approx(LAST, abs=0.5)


def test_a_state_is_never_without_its_time(tmp_path, monkeypatch):
    """Killed as soon as the only state stands, a training that is whole still says how long it took; one of an older
    version says that nobody knows"""

    class Killed(Exception):
        pass

    save = checkpoints._write_state

    def killed(*given):
        save(*given)
        raise Killed

    monkeypatch.setattr(checkpoints, "_write_state", killed)
    built, numbers = ready(rounds=1)
    with pytest.raises(Killed):
        run(tmp_path, built, numbers)
    monkeypatch.undo()
    run(tmp_path, *ready(rounds=1))
    assert checkpoints.training_seconds(tmp_path) >= 0
    (tmp_path / "seconds.json").unlink()
    run(tmp_path, *ready(rounds=1))
    assert checkpoints.training_seconds(tmp_path) is None


@pytest.mark.parametrize("where", ["measured", "counted"])
def test_a_signal_at_the_end_of_a_round_finds_the_round_kept(legs, tmp_path, where, monkeypatch):
    "As it ends, and after it has ended and before its weights are kept"

    class Ended(Exception):
        pass

    def end(self):
        raise Ended

    monkeypatch.setattr(trainer.SignalNote, "act", end)
    if where == "measured":

        def on_round(round):
            signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Ended):
            run(tmp_path, on_round=on_round)
    else:
        keep = checkpoints.Checkpoints.keep
        monkeypatch.setattr(
            checkpoints.Checkpoints,
            "keep",
            lambda self, round: (signal.raise_signal(signal.SIGTERM), keep(self, round)),
        )
        with pytest.raises(Ended):
            run(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    assert files(tmp_path) == files(legs[0] / "whole")


def test_paused_then_stopped(tmp_path):
    control = tmp_path / "control"

    def ask(line):
        if line["step"] == 2:
            control.write_text("pause")
            threading.Timer(0.3, lambda: control.write_text("stop")).start()

    with pytest.raises(Stopped, match="step 2"):
        run(tmp_path, on_step=ask)


def looking(built):
    "Do what the end of a round does to a net, and more: evaluation mode, no gradients, other random numbers"

    def on_round(round):
        for phase in built.phases:
            phase.trains.eval()
        torch.rand(7)
        return {"weights": sum(p.double().abs().sum().item() for p in built.net.parameters())}

    return on_round


def evaluated_everywhere(folder):
    built, numbers = ready()

    def ask(line):
        (folder / "control").write_text("evaluate")

    return run(folder, built, numbers, on_step=ask, on_round=looking(built))


def test_evaluated_on_the_way(legs, tmp_path):
    "After every step, and the training does not notice"
    assert evaluated_everywhere(tmp_path) == json.loads((legs[0] / "whole.json").read_text())
    assert files(tmp_path) == files(legs[0] / "whole") and not (tmp_path / "control").exists()
    asked = [line for line in read_lines(tmp_path / "history.jsonl") if "asked" in line]
    assert [line["round"] for line in asked] == [round(2 * step / LAST, 2) for step in range(1, LAST + 1)]
    assert asked[LAST // 2 - 1]["weights"] == json.loads((legs[0] / "whole.json").read_text())[0]["weights"]


def test_negative_control_evaluation_mode_left_on(legs, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer._Session, "_evaluate", lambda self, learner: self.on_round(self.step))
    evaluated_everywhere(tmp_path)
    assert files(tmp_path) != files(legs[0] / "whole")


def test_paused_then_evaluated_stays_paused(tmp_path):
    control, seen = tmp_path / "control", []

    def ask(line):
        seen.append(line["step"])
        if line["step"] == 4:
            control.write_text("evaluate pause")
            threading.Timer(0.6, lambda: (seen.append(control.read_text()), control.write_text("stop"))).start()

    with pytest.raises(Stopped, match="step 4"):
        run(tmp_path, on_step=ask)
    assert (
        seen == [1, 2, 3, 4, "pause"] and sum("asked" in line for line in read_lines(tmp_path / "history.jsonl")) == 1
    )


@pytest.mark.parametrize(
    "content", [b"", b"go on", b"evaluate stop", b"evaluate evaluate pause", b"\xff\xfe", b"stopped"]
)
@pytest.mark.quick_cases(2)
def test_other_words_in_the_control_file_mean_nothing(tmp_path, content):
    (tmp_path / "control").write_bytes(content)
    numbers = toy.recipe()
    built = toy.made(methods["finetune"], toy.for_row(methods["finetune"]), numbers)
    assert len(run(tmp_path, built, numbers)) == 1 and (tmp_path / "control").read_bytes() == content


# ------------------------------------------------------------------ what stands on disk
def test_a_finished_training_is_not_trained_again(legs, tmp_path):
    records, before = run(tmp_path), files(tmp_path)
    assert run(tmp_path, on_step=lambda line: pytest.fail("a step was taken")) == records and files(tmp_path) == before


def test_a_damaged_state_is_not_trusted(legs, tmp_path):
    """One flipped bit in the newest state: the training says so, goes on from the one before, the end of the first
    round, and ends where it should"""

    def ask(line):
        if line["step"] == 12:
            (tmp_path / "control").write_text("stop")

    with pytest.raises(Stopped):
        run(tmp_path, on_step=ask)
    state = newest(tmp_path, "state")
    weights = bytearray((state / "net.safetensors").read_bytes())
    weights[-3] ^= 1
    (state / "net.safetensors").write_bytes(weights)
    assert state.name == "state-12" and newest(tmp_path, "state").name == "state-9"
    lines = []
    with pytest.warns(UserWarning, match="state-12 is damaged; the training resumes from state-9"):
        run(tmp_path, on_step=lines.append)
    assert [line["step"] for line in lines] == list(range(10, LAST + 1))
    assert files(tmp_path) == files(legs[0] / "whole")


def test_without_a_folder_nothing_is_written(legs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(None) == json.loads((legs[0] / "whole.json").read_text()) and list(tmp_path.iterdir()) == []


def test_only_what_learned_is_kept(legs):
    "No f_m in a stage-2 training's files, and no gradient state of it"
    from safetensors.torch import load_file

    kept = load_file(legs[0] / "whole" / "round-2" / "net.safetensors")
    moments = load_file(legs[0] / "whole" / f"state-{LAST}" / "net.optimizer.safetensors")
    assert not any(name.startswith("shared.") for name in [*kept, *moments])
    assert {name.rsplit("/", 1)[0] for name in moments} == set(kept)


# ------------------------------------------------------------------ poison
def poisoned(built, phase, part, after, value):
    "The same phases, but from some call on one part of the loss is `value`"
    calls = [0]

    def replaced(loss):
        def bad(batch):
            total, parts = loss(batch)
            calls[0] += 1
            if calls[0] <= after:
                return total, parts
            return total * value, parts | {part: parts[part] * value}

        return bad

    built.phases[:] = [replace(p, loss=replaced(p.loss)) if p.name == phase else p for p in built.phases]
    return built


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name,phase,part",
    [
        *(("macular", "net", part) for part in ("task", "aug_kl", "lang_adv", "consistency")),
        ("macular", "discriminator", "lang_disc"),
        *(("macular_nots", "net", part) for part in ("task", "aug_ce", "task_adv")),
        ("macular_nots", "discriminator", "task_disc"),
    ],
)
def test_a_loss_that_is_no_number(tmp_path, name, phase, part, value):
    "At that step, by its name; no step is taken with it, and what was saved stays"
    built, numbers = ready(name)
    steps = {p.name: p.passes * p.steps for p in built.phases}
    poisoned(built, phase, part, steps[phase] + 1, value)  # in the second round
    last = []
    with pytest.raises(NumericError, match=f"(?s)'{phase}'.*{part}") as said:
        run(tmp_path, built, numbers, on_step=lambda line: last.append((line, toy.state(built.net))))
    assert "checkpoint is kept" in str(said.value) and len(str(said.value)) <= 1000
    assert last[-1][0]["round"] == 2 and toy.same(last[-1][1], toy.state(built.net))
    assert verify(newest(tmp_path, "state")) and newest(tmp_path, "state").name == f"state-{sum(steps.values())}"
    assert not any(torch.isnan(v).any() for v in toy.state(built.net).values())


def test_poison_taken_away(legs, tmp_path):
    "After the error the same command goes on from the last checkpoint, to the same bytes"
    built, numbers = ready()
    with pytest.raises(NumericError):
        run(tmp_path, poisoned(built, "net", "task", 4, float("nan")), numbers)
    run(tmp_path)
    assert files(tmp_path) == files(legs[0] / "whole")


@pytest.mark.parametrize("at", [2, 3])
def test_a_gradient_that_is_no_number(tmp_path, at):
    "A finite loss with a gradient of NaN is caught at its own step, also when that is the last one before a checkpoint"
    net, calls = torch.nn.Linear(2, 1), [0]

    def loss(batch):
        calls[0] += 1
        value = net.weight.pow(2).sum()
        if calls[0] == at:
            value = value + (net.weight - net.weight.detach()).abs().sqrt().sum()  # 0, with a slope of 0/0
        return value, {"task": value}

    with pytest.raises(NumericError, match="net"):
        fit([Phase("net", net, loss, lambda round: [{}] * 3, 3)], Loop(1), folder=tmp_path)
    assert (
        calls[0] == at and not any(torch.isnan(p).any() for p in net.parameters()) and newest(tmp_path, "state") is None
    )


# ------------------------------------------------------------------ the schedule
def test_rates_and_rounds():
    "The net's rate falls linearly over all rounds, D's stays; every round asks for its data once"
    rates, asked = [], []

    def phase(name, **options):
        module = torch.nn.Linear(2, 1)

        def loss(batch):
            value = module.weight.sum() + module.bias.sum()
            return value, {}

        return Phase(name, module, loss, lambda round: asked.append((name, round)) or [{}] * 4, 4, lr=0.1, **options)

    def look(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(look)
    try:
        fit([phase("discriminator", passes=2), phase("net", decay=True)], Loop(2))
    finally:
        handle.remove()
    assert asked == [("discriminator", 0), ("net", 0), ("discriminator", 1), ("net", 1)]
    assert rates[:8] == rates[12:20] == [0.1] * 8
    assert rates[8:12] + rates[20:] == pytest.approx([0.1 * (1 - i / 8) for i in range(8)])


def test_gradients_are_cut_to_norm_one():
    net, seen = torch.nn.Linear(3, 1, bias=False), []

    def look(optimizer, *_):
        seen.append(net.weight.grad.norm().item())

    handle = register_optimizer_step_pre_hook(look)
    batches = [{"by": torch.tensor(100.0)}, {"by": torch.tensor(0.1)}]
    try:
        fit([Phase("net", net, lambda b: ((net.weight * b["by"]).sum(), {}), lambda round: batches, 2)], Loop(1))
    finally:
        handle.remove()
    assert seen == pytest.approx([1.0, 0.1 * 3**0.5], rel=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
