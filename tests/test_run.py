"""Whole jobs on the mini world: what they leave, what they find again, what survives a kill, what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from conftest import ROOT

from macular.data.mini_world import Mini
from macular.exceptions import DataError, ParameterError
from macular.store import read_json, read_lines, sha256, verify
from macular.train.config import Job, check

SMALL = dict(
    preset="mini",
    max_train=48,
    rounds=2,
    langs="en,de",
    stage1="pawsx,xnli",
    task="pawsx",
    max_length=32,
    backbone=str(toy.backbone("xlmr")),
)
WORLD = Mini(train=48, dev=40, test=60)


def quiet(event, facts):
    pass


def run(out, watch=quiet, **changes):
    from macular.train.run import run

    return run(check(SMALL | {"out": str(out)} | changes), watch, None if "preset" in changes else WORLD)


def record(folder):
    "Every file of a job or training that must not differ between two runs"
    free = ("environment.json", "history.jsonl", "seconds.json", ".lock")
    return {
        str(p.relative_to(folder)): sha256(p)
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and p.name not in free
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return run(out, method="macular")


def test_a_job_leaves_its_record(finished):
    result, folder = finished.values, finished.folder
    assert result["status"] == "complete" and result["split"] == "test"
    assert set(result["accuracy"]) == {"pawsx"} and set(result["accuracy"]["pawsx"]) == {"en", "de"}
    assert set(result["selections"]) == {"en_dev"} and "selections" not in result["config"]
    assert result["accuracy"] == result["selections"]["en_dev"]["accuracy"]
    assert (
        0
        < result["trainings"]["macular"]["switch_rates"]["pawsx"]["realised"]
        < result["trainings"]["macular"]["switch_rates"]["pawsx"]["nominal"]
    )
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "environment.json",
        "predictions.parquet",
        "result.json",
    }
    predictions = finished.predictions
    assert list(predictions)[:4] == ["item", "language", "label", "prediction"]
    for lang, value in result["accuracy"]["pawsx"].items():
        own = predictions[predictions["language"] == lang]
        assert value == pytest.approx(100 * (own["label"] == own["prediction"]).sum() / len(own), abs=1e-12)


@pytest.fixture
def scored_texts(monkeypatch):
    "A function of no arguments that returns the number of texts that encoders scored since its last call"
    from macular.model.modules import Encoder

    forward, texts = Encoder.forward, []

    def counting(self, views):
        if not self.training:
            texts.append(sum(len(view["lengths"]) for view in views))
        return forward(self, views)

    monkeypatch.setattr(Encoder, "forward", counting)

    def since():
        found = sum(texts)
        texts.clear()
        return found

    return since


@pytest.mark.slow
def test_each_text_is_scored_once_with_the_same_weights(tmp_path, scored_texts):
    dev, test, rounds, every = 40, 60, 2, "last,averaged,all_dev_oracle"  # texts of a language; two languages
    job = dict(method="finetune", stage1="paper", seed=3)
    plain = run(tmp_path, **job)
    assert scored_texts() == rounds * dev + 2 * test  # English dev selects the round
    asked = run(tmp_path, **job, selections=every)
    chosen = {name: s["round"] for name, s in asked.values["selections"].items()}
    assert list(chosen) == ["en_dev", *every.split(",")] and (chosen["last"], chosen["averaged"]) == (2, "averaged")
    # German dev selects the oracle; English dev was scored during the training
    assert scored_texts() == rounds * dev + (len(set(chosen.values())) - 1) * 2 * test
    run(tmp_path, **job, selections="last")
    assert scored_texts() == 0
    run(tmp_path, **job | {"method": "finetune_x2"})  # averages this training and another one
    assert scored_texts() == rounds * dev + 2 * test
    alone = run(tmp_path / "alone", **job, selections=every)
    assert scored_texts() == 2 * rounds * dev + len(set(chosen.values())) * 2 * test
    assert record(alone.folder) == record(asked.folder) and alone.folder.name == asked.folder.name
    assert (alone.folder / "predictions.parquet").read_bytes() == (plain.folder / "predictions.parquet").read_bytes()
    assert plain.folder.name != asked.folder.name and plain.accuracy == asked.accuracy


def test_kept_probabilities_are_those_of_the_weights(tmp_path, scored_texts):
    import shutil

    job = dict(method="finetune", stage1="paper")
    first = run(tmp_path, **job)
    [training] = (tmp_path / "trainings").iterdir()
    kept = sorted(training.glob("probabilities/round-*/*.npy"))
    [best] = {path.parent for path in kept if path.name.startswith("de-")}
    [damaged] = best.glob("de-*")
    damaged.write_bytes(damaged.read_bytes()[:60])
    scored_texts()
    shutil.rmtree(first.folder)
    assert run(tmp_path, **job).accuracy == first.accuracy and scored_texts() == 60  # it is computed again
    for path in [training / "training.json", first.folder / "result.json", *training.glob("state-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(tmp_path, **job).accuracy == first.accuracy and scored_texts() == 2 * 40 + 2 * 60


def test_selections_are_in_config_and_key_only_when_given(tmp_path):
    from macular.results.records import folder_of, job_of
    from macular.train.resolve import identity

    plain, asked = Job(preset="mini"), Job(preset="mini", selections=("last",))
    assert identity(plain) == "323aed3b4b57214c" != identity(asked)  # the key of jobs before there were selections
    assert check({"selections": "all_dev_oracle,last"}) == check({"selections": ["last", "all_dev_oracle"]})
    with pytest.raises(ParameterError, match="unknown value of selections 'lst'. Did you mean 'last'"):
        check({"selections": "lst"})
    job = dict(method="finetune", stage1="paper", rounds=1)
    found = {value: run(tmp_path, **job, selections=value) for value in ("", "last")}
    assert found["last"].values["config"]["selections"] == ["last"]
    for value, result in found.items():
        job = job_of(result.folder)
        assert job.selections == tuple(filter(None, [value])) and folder_of(job) == result.folder


@pytest.mark.parametrize(
    "files, quota",
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_the_cores_of_a_process_are_its_affinity_within_its_quota(tmp_path, monkeypatch, files, quota):
    from macular.process import _cores

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _cores(tmp_path) == (quota or 8)


def test_the_workers_of_a_sweep_divide_the_cores(monkeypatch):
    from macular import process
    from macular.jobs.engines import Processes

    monkeypatch.setattr(process, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [process._threads(n) for n in (1, 3, 9)] == [8, 2, 1]
    with Processes(4).crew(None) as pool:
        assert pool.threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "6")  # the user's number
    assert [process._threads(n) for n in (1, 4)] == [6, 1]


@pytest.mark.slow
def test_no_key_depends_on_threads(tmp_path, monkeypatch):
    import torch

    before, names = torch.get_num_threads(), set()
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        for preset, used in (("quick", int(threads)), ("mini", 1)):
            job = dict(SMALL, preset=preset, method="finetune", stage1="paper", rounds=1, precision="fp32")
            from macular.train.run import run

            done = run(check(job | {"out": str(tmp_path / threads)}), quiet, WORLD)
            assert read_json(done.folder / "environment.json")["threads"] == used
            names.add((preset, done.folder.name, *(t["key"] for t in done.values["trainings"].values())))
    assert len(names) == 2 and torch.get_num_threads() == before


def without_pooler(folder, to):
    "Copy a toy backbone as a sentence encoder is saved"
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, to / "model.safetensors", {"format": "pt"})
    assert len(kept) < len(weights)
    return to


def trained_row(out, **changes):
    "The key of a job's training, and its method as recorded"
    from macular.train.run import run

    given = SMALL | dict(method="finetune", stage1="paper", rounds=1, precision="fp32", out=str(out)) | changes
    done = run(check(given), quiet, WORLD)
    [made] = done.values["trainings"].values()
    return made["key"], read_json(Path(out) / "trainings" / made["key"] / "training.json")["row"], done


@pytest.mark.parametrize("kind", ["bert", "xlmr", "without pooler"])
@pytest.mark.quick_cases(1)
def test_a_bert_without_pooler_is_read_by_its_mean(tmp_path, monkeypatch, kind):
    "The choice is made before the key, and in the record"
    from macular.jobs.rerun import reopen
    from macular.train.methods import Readings, finetune, methods

    e = "mean" if kind == "without pooler" else "head_input"
    folder = without_pooler(toy.backbone("bert"), tmp_path / "b") if e == "mean" else toy.backbone(kind)
    job = dict(backbone=str(folder), preset="quick")
    key, row, done = trained_row(tmp_path, **job)
    assert row["readings"]["e"] == e
    assert any("e is the mean over the tokens" in note for note in done.values["notes"]) == (e == "mean")
    named = finetune.derive(f"finetune_reads_{e}", readings=Readings(e=e))
    monkeypatch.setitem(methods._records, named.name, named)
    assert trained_row(tmp_path, **job, method=named.name)[0] == key
    assert trained_row(tmp_path, **job | {"preset": "mini"})[1]["readings"]["e"] == "head_input"
    if e == "mean":  # it is used as it was trained
        [training] = reopen(done.folder)[1]
        assert training.method.readings.e == "mean" and training.net(training.weights(1))


def test_no_path_and_no_time_in_what_must_not_differ(finished):
    text = (finished.folder / "result.json").read_text() + (finished.folder / "config.json").read_text()
    assert str(finished.folder.parent) not in text and os.sep + "tmp" not in text
    assert (
        not {"started", "versions", "threads", "device"}
        & json.loads((finished.folder / "result.json").read_text()).keys()
    )


def test_the_backbone_is_part_of_the_record(finished, tmp_path):
    import shutil

    from macular.data.backbones import backbone_origin
    from macular.data.mini_world import backbone

    found, folder = finished.values["backbone"], toy.backbone("xlmr")
    assert found["sha256"]["model.safetensors"] == sha256(folder / "model.safetensors")
    assert {k: v for k, v in found.items() if k != "sha256"} == {
        "name": folder.name,
        "source": "a folder",
        "licence": "not stated",
    }
    assert backbone_origin("mini-xlmr", backbone("mini-xlmr")) == {
        "name": "mini-xlmr",
        "source": "ships with the package",
        "licence": "Apache-2.0",
    }
    cached = tmp_path / "models--some--net" / "snapshots" / "0123abc"  # as the hub's cache lies
    shutil.copytree(backbone("mini-bert"), cached)
    assert backbone_origin("some/net", cached) == {
        "name": "net",
        "source": "some/net@0123abc",
        "licence": "not stated",
    }  # not there by that name, so from the hub
    (cached / "README.md").write_text("---\nlicense: mit\n---\n# A net\n")
    assert backbone_origin("some/net", cached)["licence"] == "mit"
    assert backbone_origin(str(cached), cached)["source"] == "a folder", "no path of this machine"


def test_the_plan_counts_the_steps_that_are_taken(finished):
    from macular.train.run import preview

    for line, training in zip(preview(check(SMALL)), finished.values["trainings"].values(), strict=True):
        history = read_lines(finished.folder.parent / "trainings" / training["key"] / "history.jsonl")
        assert line["steps"] == max(step["step"] for step in history)
    assert [line["steps"] for line in preview(Job(preset="mini", stage1="xnli", task="xnli"))][0] == 3 * 38, (
        "one task has no task adversary"
    )
    assert [line["training"] for line in preview(Job(preset="mini", task="xnli", method="finetune_x2"))] == [
        "Fine-tuning ×2, seed 0",
        "Fine-tuning ×2, seed 1000",
    ]


def test_hashes_do_not_depend_on_what_was_read_before():
    "The neighbour's dev rows, which stage 1 reads in ordinary jobs only"
    from macular.train.config import fill
    from macular.train.inputs import Data, _row_digest, digests, trained_on
    from macular.train.methods import methods

    def unread():
        data = Data(fill(check(SMALL | {"task": "qam"})))
        data.source = WORLD
        return data

    fresh, used = unread(), unread()
    used.rows(used.task("qadsm"), "dev")
    learned, near = trained_on(fresh, methods["macular"])
    assert near.name == "qadsm" and all(_row_digest(fresh, t, "dev") for t in [*learned, near])
    assert digests(used, methods["macular"], [*learned, near]) == digests(
        unread(), methods["macular"], [*learned, near]
    )


def test_stage_one_is_a_training_of_its_own(finished):
    trainings = finished.values["trainings"]
    assert list(trainings) == ["macular_nots", "macular"]
    for key in (t["key"] for t in trainings.values()):
        folder = finished.folder.parent / "trainings" / key
        for n in (1, 2):
            verify(folder / f"round-{n}")
        assert read_json(folder / "training.json")["rounds"][1]["round"] == 2
        assert [line["step"] for line in read_lines(folder / "history.jsonl") if "phase" in line]


def test_stages_are_listed_and_older_results_are_read(finished):
    from macular.results.records import stages_of

    result = finished.values
    assert [(s["stage"], s["member"]) for s in result["stages"]] == [(1, 1), (2, 1)]
    assert [s["key"] for s in result["stages"]] == [t["key"] for t in result["trainings"].values()]
    older = {name: value for name, value in result.items() if name != "stages"}
    assert stages_of(older) == stages_of(result) and stages_of(result)[1]["tasks"] == ["pawsx"]
    first = {f"mtl{n}": {"key": f"a{n}"} for n in ("", " 2")}
    twice = {"trainings": first | {f"mtl_ft{n}": {"key": n} for n in ("", " 2")}}
    assert [(s["stage"], s["member"]) for s in stages_of(twice)] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_the_same_job_again_finds_it(finished):
    before, events = record(finished.folder.parent), []
    again = run(finished.folder.parent, method="macular", watch=lambda event, facts: events.append(event))
    assert "already" in events and "start" not in events and "step" not in events
    assert record(finished.folder.parent) == before and again.values == finished.values


def test_an_ablation_finds_stage_one(finished):
    events = []
    other = run(
        finished.folder.parent,
        method="macular_wo_consistency",
        watch=lambda event, facts: events.append((event, facts.get("method"))),
    )
    assert ("found", "macular_nots") in [(e, r and r.name) for e, r in events] and [e for e, _ in events].count(
        "start"
    ) == 1
    assert other.values["trainings"]["macular_nots"] == finished.values["trainings"]["macular_nots"]
    assert other.folder != finished.folder


ELSEWHERE = """
import sys
from test_run import run
run(sys.argv[1], method="macular")
print(*sorted({"tensorboard", "torch.utils.tensorboard", "wandb", "mlflow"} & set(sys.modules)))
"""
LAUNCHER = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "WORLD_SIZE": "2", "MASTER_PORT": "1", "RANK": "0"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "The same job in another process, with another hash seed and a launcher's variables; what it printed last"
    out = tmp_path_factory.mktemp("elsewhere")
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(out)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=os.environ | LAUNCHER | {"PYTHONHASHSEED": "77", "PYTHONPATH": path},
    )
    return out, done.stdout.splitlines()[-1]


def test_another_process_and_a_launchers_variables_change_no_byte(finished, elsewhere):
    one, two = (record(p) for p in (finished.folder.parent, elsewhere[0]))
    assert two and {name: one.get(name) for name in two} == two


@pytest.mark.parametrize("event,n", [("step", 7), ("step", 21), ("round", 2), ("step", 27), ("score", 1)])
def test_a_killed_job_goes_on_to_the_same_bytes(finished, tmp_path, event, n):
    seen = []

    def watch(now, facts):
        seen.append(now)
        if seen.count(event) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        try:
            run(tmp_path, method="macular", watch=watch)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not list(tmp_path.glob("*/result.json"))
    run(tmp_path, method="macular")
    one, two = (record(p) for p in (finished.folder.parent, tmp_path))
    assert {name: one.get(name) for name in two} == two


def test_seeds_differ(finished, tmp_path):
    other = run(tmp_path, method="finetune", stage1="paper", seed=1)
    same = run(tmp_path, method="finetune", stage1="paper")
    assert (
        other.folder != same.folder
        and not (other.predictions["p_paraphrase"] == same.predictions["p_paraphrase"]).all()
    )


@pytest.mark.parametrize(
    "changes,said",
    [
        (dict(method="macular_nots_wo_pawsx"), "does not learn 'pawsx'"),
        (dict(method="finetune", stage1="paper", beta1=0.5), "has no 'aug_kl' loss"),
        (dict(backbone="./nowhere"), "no folder './nowhere'"),
    ],
)
def test_refused_before_a_model_is_loaded(tmp_path, monkeypatch, changes, said):
    import macular.train.build

    monkeypatch.setattr(macular.train.build, "load_encoder", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ParameterError, match=said):
        run(tmp_path, **changes)


@pytest.mark.parametrize(
    "wrong,said",
    [
        (dict(rounds=-1, alpha=7.0), "alpha is 7.0.*\n.*rounds is -1"),
        (dict(stage1="pwasx,xnli"), "Did you mean 'pawsx'"),
        (dict(method="finetune", word_rate=0.3), "no augmentation"),
        (dict(langs=("dee",)), "Did you mean 'de'"),
    ],
)
def test_a_job_made_in_python_is_checked_as_well(tmp_path, wrong, said):
    from macular.train.run import preview, run

    job = Job(preset="mini", out=str(tmp_path), **wrong)
    for do in (run, preview):
        with pytest.raises(ParameterError, match=said):
            do(job)


def test_the_precision_is_that_of_the_device_a_job_computes_on(monkeypatch):
    "Preset mini computes on the CPU, beside whatever GPU there is"
    import torch

    from macular.train.resolve import settle

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert (
        settle(Job(preset="mini", precision="auto")).precision == "fp32"
        and settle(Job(preset="quick")).precision == "bf16"
    )


LAUNCHED = [
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_SIZE": "2", "PMI_RANK": "1"},
    {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "inductor"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "true"},
]


@pytest.mark.parametrize("names", LAUNCHED)
def test_variables_of_launchers_are_ignored_with_a_note(names, monkeypatch):
    "One process, one step per batch, the job's precision; afterwards the environment is as before"
    from macular.train.run import _device

    for name, value in names.items():
        monkeypatch.setenv(name, value)
    told = []
    with _device(check(SMALL | {"precision": "fp32"}), lambda event, facts: told.append(facts["note"])) as accelerator:
        assert not names.keys() & os.environ.keys()
        assert accelerator.num_processes == 1 and accelerator.gradient_accumulation_steps == 1
        assert accelerator.mixed_precision == "no" and accelerator.distributed_type.value == "NO"
    assert len(told) == 1 and all(name in told[0] for name in names)
    assert all(os.environ[name] == value for name, value in names.items())


def test_predictions_in_python_are_of_one_process(finished, monkeypatch):
    "Another program's launcher is no matter of a run that is opened again"
    import pandas as pd

    from macular.deploy.huggingface import predict_texts
    from macular.train.run import _without_callers_accelerator

    frame = pd.DataFrame({"text_a": ["A dog sees the cat"], "text_b": ["The cat sees a dog"]})
    before = predict_texts(frame, finished.folder)
    for name, value in LAUNCHED[0].items():
        monkeypatch.setenv(name, value)
    with _without_callers_accelerator(), pytest.warns(UserWarning, match="WORLD_SIZE"):
        pd.testing.assert_frame_equal(predict_texts(frame, finished.folder), before)


def test_a_note_of_several_trainings_is_told_once(finished):
    (note,) = [note for note in finished.values["notes"] if "the backbone holds no" in note]
    assert note.startswith("Macular-NoTS and Macular: ")


@pytest.mark.slow
def test_figures_change_neither_key_nor_record(finished, tmp_path):
    assert run(finished.folder.parent, method="macular", figures="pdf").folder == finished.folder
    assert "figures" not in read_json(finished.folder / "config.json")
    with pytest.raises(ParameterError, match="unknown figures 'docx'"):
        check({"figures": "docx"})


def test_other_variables_are_left_alone(monkeypatch):
    from macular.process import one_process

    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MPI_HOME", "RANKING", "SLURM_NTASKS", "MY_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with one_process(pytest.fail):
        assert os.environ == before


# what is told


def told(out, **changes):
    "The lines of a job's log, and its events"
    from macular.train.run import lines

    said, events = [], []

    def watch(event, facts):
        events.append((event, facts))
        said.extend(lines(event, facts))

    return run(out, watch=watch, **changes), said, events


@pytest.mark.slow
def test_a_stopped_training_says_where_it_is_saved_and_a_resumed_one_where_it_resumes(tmp_path):
    from macular.exceptions import Stopped
    from macular.train.run import lines

    said = []

    def watch(event, facts):
        said.extend(lines(event, facts))
        if event == "step" and facts["step"] == 3:
            [training] = tmp_path.glob("trainings/*/history.jsonl")
            (training.parent / "control").write_text("stop")

    with pytest.raises(Stopped, match="step 3"):
        run(tmp_path, watch=watch, method="finetune", stage1="paper")
    assert said[-1] == "Fine-tuning: saved at step 3; the same command resumes"
    assert "Fine-tuning: resuming at step 3" in told(tmp_path, method="finetune", stage1="paper")[1]


def test_ipython_shows_a_stop_without_a_traceback():
    from IPython.core.interactiveshell import InteractiveShell

    from macular.exceptions import Stopped

    shell, shown = InteractiveShell(), []
    shell._showtraceback = lambda kind, error, lines: shown.append(lines)
    try:
        raise Stopped("stopped in round 1, step 3; the same command resumes from there")
    except Stopped:
        shell.showtraceback()
    assert shown == [["stopped in round 1, step 3; the same command resumes from there"]]


@pytest.mark.slow
def test_a_note_is_told_once(tmp_path):
    _, said, _ = told(tmp_path, method="macular")
    assert sum("the backbone holds no" in line for line in said) == 1


def test_the_progress_of_a_job():
    "Step, time left at the pace of each phase, also of later trainings, and the last dev accuracy"
    from types import SimpleNamespace

    from macular.train.checkpoints import _JobProgress

    progress = _JobProgress()
    first, second = SimpleNamespace(title="One"), SimpleNamespace(title="Two")
    progress.take("data", {"steps": [{"discriminator": 8, "net": 4}, {"discriminator": 0, "net": 10}]})
    phases = [("discriminator", 4), ("net", 2)]
    assert str(progress) == "starting"
    progress.take("start", {"method": first, "steps": 12, "phases": phases, "notes": []})
    for step, (phase, batch) in enumerate([*(("discriminator", b) for b in (1, 2, 1, 2)), ("net", 1), ("net", 2)], 1):
        progress.take("step", {"step": step, "phase": phase, "batch": batch})
    progress.seconds.update({"discriminator": -progress.seconds["discriminator"], "net": -progress.seconds["net"]})
    progress.seconds.update({"discriminator": 2.0, "net": 6.0})
    progress.taken.update({"discriminator": 2, "net": 1})
    assert progress.taken == {"discriminator": 4, "net": 2}  # steps that begin a pass are not counted
    assert progress.left() == pytest.approx(4 * 0.5 + 2 * 3.0 + 10 * 3.0)
    progress.take("round", {"dev": {"xnli": 80.0, "qam": 90.0}})
    assert str(progress) == "One: step 6 of 12, 00:38 left, dev 85.0 %, mean of 2 tasks"
    progress.take("start", {"method": second, "steps": 10, "phases": [("net", 5)], "notes": []})
    progress.take("resume", {"method": second, "step": 5})
    assert progress.left() == pytest.approx(5 * 3.0) and progress.told == "resumed at step 5"


def test_outside_of_a_terminal_progress_is_printed_now_and_then(capsys, monkeypatch):
    import macular.process as process

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    now = [100.0]
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])
    lines = process._ProgressLines(first=10.0)
    for _ in range(1000):
        now[0] += 1.0
        lines.show("Macular", f"{now[0]:.0f}")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Macular: 111", "Macular: 121"] and 10 < len(said) < 40


# trackers


@pytest.mark.slow
def test_a_tracker_receives_losses_rates_and_dev_accuracy(finished, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, method="macular", track="tensorboard")
    one, two = record(finished.folder.parent), record(tmp_path)
    assert all(one[name] == h for name, h in two.items() if not name.startswith("tracking"))
    assert result.folder.name == finished.folder.name and "track" not in read_json(result.folder / "config.json")
    [folder] = (tmp_path / "tracking").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"macular_nots/net/task_adv", "macular/net/consistency", "macular/net/rate", "macular/dev/pawsx"} <= names
    rates = [s.value for s in events.Scalars("macular/net/rate")]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(5e-4)
    history = {}
    for name, training in finished.values["trainings"].items():
        folder = finished.folder.parent / "trainings" / training["key"]
        history[name] = [line for line in read_lines(folder / "history.jsonl") if line.get("phase") == "net"]
    got = [s.value for s in events.Scalars("macular/net/consistency")]
    assert got == pytest.approx([line["consistency"] for line in history["macular"]], rel=1e-5)
    dev = [s.value for s in events.Scalars("macular/dev/pawsx")]
    assert dev == pytest.approx([d["pawsx"] for d in finished.values["trainings"]["macular"]["dev"]])
    steps = [s.step for s in events.Scalars("macular/net/task")]
    last = max(s.step for s in events.Scalars("macular_nots/net/task"))
    assert steps == sorted(set(steps)) and steps[0] > last


def test_a_tracker_that_is_not_installed_or_unknown_is_refused(tmp_path, monkeypatch):
    from macular.exceptions import SetupError
    from macular.train import run as module

    with pytest.raises(ParameterError, match="Did you mean 'tensorboard'"):
        check({"track": "tensorbord"})
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("a training was started"))
    with pytest.raises(SetupError, match="dvclive, which is not installed. pip install dvclive"):
        run(tmp_path, method="finetune", stage1="paper", track="dvclive")


def test_the_trackers_are_those_of_accelerate():
    from accelerate.utils import LoggerType

    from macular.train.config import WORDS

    assert set(WORDS["track"]) == {str(x) for x in LoggerType} - {"all"}


@pytest.mark.slow
def test_without_track_no_tracker_is_imported(elsewhere):
    assert elsewhere[1] == ""


@pytest.mark.slow
def test_a_callers_accelerator_and_settings_survive_a_job():
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from macular.train.resolve import settle
    from macular.train.run import _device

    torch.use_deterministic_algorithms(True)  # errors, not warnings
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process that has made none yet
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    try:
        with _device(settle(Job(preset="mini")), lambda event, facts: None) as accelerator:
            assert accelerator.mixed_precision == "no" and torch.is_deterministic_algorithms_warn_only_enabled()
        assert own.mixed_precision == "bf16" and own.device.type == "cpu" and own.gradient_accumulation_steps == 3
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
    finally:
        torch.use_deterministic_algorithms(False)
        AcceleratorState._reset_state(reset_partial_state=True)


def test_missing_dictionaries_are_told_before_rows_are_read(tmp_path, monkeypatch):
    import macular.train.inputs
    from macular.train.run import preview, run

    monkeypatch.setattr(macular.train.inputs, "load", lambda *a, **k: pytest.fail("rows were read"))
    monkeypatch.chdir(tmp_path)  # where no dictionaries are
    for method in ("cosda_ml", "macular"):
        for given, command in (({}, "dictionaries$"), ({"lexicon_dir": "words"}, "dictionaries --to words")):
            job = Job(task="xnli", method=method, preset="quick", backbone="mini-bert", out="runs", **given)
            for do in (run, preview):
                with pytest.raises(DataError, match=f"macular data fetch {command}"):
                    do(job)
    assert preview(Job(task="xnli", method="finetune", preset="quick", backbone="mini-bert"))[0]["rows"] == 10_000


def test_missing_data_names_the_command(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="macular data fetch"):
        run(
            tmp_path,
            method="macular",
            preset="quick",
            data_dir=str(tmp_path / "data"),
            lexicon_dir=str(tmp_path),
            stage1="paper",
            backbone="mini-bert",
        )


def test_a_job_is_known_by_both_names():
    from macular.jobs import plan
    from macular.train import config

    assert plan.Job is config.Job and replace(Job(), seed=1) == check({"seed": 1})


def test_ties_on_dev_go_to_the_lowest_dev_loss(tmp_path):
    from macular.train.stages import Training

    def best(*rounds):
        (tmp_path / "training.json").write_text(json.dumps({"rounds": rounds}))
        return Training("key", None, tmp_path, None, None).best

    def line(a, b, *losses):
        return {"dev": {"qam": a, "qadsm": b}} | ({"dev_loss": dict(zip(("qam", "qadsm"), losses))} if losses else {})

    assert best(line(90.0, 95.0, 0.4, 0.3), line(95.0, 90.0, 0.4, 0.2), line(90.0, 94.0, 0.1, 0.1)) == 2
    assert best(line(90.0, 95.0, 0.4, 0.3), line(91.0, 95.0, 0.9, 0.9)) == 2
    assert best(line(95.0, 95.0, 0.3, 0.3), line(95.0, 95.0, 0.3, 0.3)) == 1
    assert best(line(90.0, 95.0), line(95.0, 90.0)) == 1  # a record of an earlier version
    assert best({"dev": {}}, {"dev": {}}) == 2


def test_dev_loss_is_the_cross_entropy_of_the_labels():
    from sklearn.metrics import log_loss

    from macular.train.stages import _cross_entropy

    p, labels = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]], np.float32), np.array([0, 1, 2])
    assert _cross_entropy(p, labels) == pytest.approx(log_loss(labels, p), rel=1e-6) == pytest.approx(1.2877, abs=1e-3)
    assert 0 < _cross_entropy(p * np.float32([0, 1, 1]), labels) < 100
