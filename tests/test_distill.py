"""Students: they come to answer as their teacher does, are found again, survive a stop, and are runs and models like
any other."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import toy
from accelerate import Accelerator
from safetensors.torch import load_file
from test_model import elsewhere
from test_run import quiet
from test_run import record as files

from macular.cli import main
from macular.data.mini_world import Mini
from macular.data.tasks import load
from macular.deploy.card import result_of, select_checkpoint
from macular.deploy.distill import (
    Teacher,
    _latency,
    _scores_by_language,
    _student_method,
    _teacher_loss,
    distill,
    student_report,
)
from macular.deploy.huggingface import export, model_of, predict
from macular.exceptions import DataError, ParameterError, Stopped
from macular.jobs.rerun import reopen, rerun
from macular.results.compare import compare
from macular.results.records import record
from macular.results.statistics import resampled, same_design
from macular.results.tables import languages
from macular.results.timing import count_work
from macular.store import read_json, read_lines, write_json
from macular.text.code_switch import CodeSwitch
from macular.text.encode import Views, features
from macular.train.build import TrainingBatches, build, text_settings
from macular.train.config import check
from macular.train.evaluate import evaluate
from macular.train.inputs import digests
from macular.train.methods import methods
from macular.train.run import run
from macular.ui.board import _records_of
from macular.ui.views import data_of

pytestmark = pytest.mark.slow

SMALL = dict(
    preset="mini", max_train=48, rounds=2, langs="de", task="pawsx", max_length=32, backbone=str(toy.backbone("xlmr"))
)
REAL = dict(rounds=1, backbone="mini-xlmr")
ROW = _student_method(methods["macular"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A finished run of a row, made when first asked for"
    out = tmp_path_factory.mktemp("runs")

    @cache
    def of(method, **changes):
        stage1 = {"stage1": "xnli,pawsx"} if method.startswith("macular") else {}
        return run(check(SMALL | stage1 | changes | {"method": method, "out": str(out)}), quiet)

    return of


@pytest.fixture(scope="module")
def student(done):
    return distill(done("macular"), quiet)


def training(result):
    return result.folder.parent / "trainings" / result.values["trainings"][result.values["config"]["method"]]["key"]


def starts(run, **changes):
    "The student, and what was trained for it"
    seen = []
    result = distill(run, lambda event, facts: event == "start" and seen.append(facts["method"].name), **changes)
    return result, seen


# the loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_is_the_divergence_written_out(dtype):
    logits, p = (
        torch.tensor([[1.5, -2.0, 0.25], [0.0, 3.0, 1.0]], dtype=dtype),
        torch.tensor([[0.7, 0.1, 0.2], [0.0, 0.0, 1.0]]),
    )
    q = logits.double().softmax(-1)
    wanted = (
        sum(float(a) * np.log(float(a) / float(b)) for row in zip(p.double(), q) for a, b in zip(*row) if a > 0) / 2
    )
    assert _teacher_loss(logits, p).item() == pytest.approx(wanted, abs=1e-6) and _teacher_loss(
        logits, p
    ).dtype == torch.promote_types(dtype, torch.float32)
    assert _teacher_loss(logits.double(), q).item() == pytest.approx(0, abs=1e-12)


def test_a_student_has_one_encoder_and_no_label():
    for name in ("macular", "finetune", "syn", "prompt"):
        row = _student_method(methods[name])
        assert (row.tasks, row.shared, row.encoder, row.head, row.ensemble, row.name) == (
            "own",
            None,
            "plain",
            "linear",
            1,
            f"{name}_student",
        )
        assert row.augment.redraw and set(row.active()) == {"teacher_kl", "teacher_aug_kl"}
    rates = replace(methods["macular"], augment=CodeSwitch(word=0.2, sentence=0.7))
    assert (
        _student_method(rates).augment == CodeSwitch(word=0.2, sentence=0.7, redraw=True)
        and _student_method(rates, 0.0).augment.word == 0
    )


# toy nets: what the batches carry, and what is learned from it


class Judge:
    "A toy net that answers for a student; it counts what it is asked"

    def __init__(self, dropout=0.0):
        self.net, self.asked = (
            toy.made(methods["finetune"], toy.material("toy3", dropout=dropout, n=24), toy.recipe(seed=7), double=False)
            .phases[0]
            .trains.eval(),
            [],
        )

    def __call__(self, views, suffixes, round, accelerator):
        self.asked.append((suffixes, round))
        items = views.items(round, suffixes)
        found = features(self.net, items.batch, items.lengths, tuple("logits" + s for s in suffixes), accelerator)
        return {f"teacher{s}": found["logits" + s].softmax(-1) for s in suffixes}


def taught(n=24, **options):
    "Toy material with a teacher"
    return replace(toy.material("toy3", n=n, **options), teacher=Judge())


def apart(net, judge, stuff, numbers):
    "The mean divergence of a net from its teacher on the texts as they are, and on a draw it never learned from"
    views = Views(stuff.tasks, stuff.rows, text_settings(ROW, stuff, numbers))
    items = views.items(50, ("", "_aug"))
    names = ("logits", "logits_aug")
    p, q = (features(one, items.batch, items.lengths, names, Accelerator(cpu=True)) for one in (judge.net, net))
    return [_teacher_loss(q[n], p[n].softmax(-1)).item() for n in names]


def test_a_student_comes_to_answer_as_its_teacher():
    stuff, numbers = taught(), toy.recipe(rounds=30, learning_rate=5e-3, batch_size=8)
    built = build(ROW, stuff, numbers)
    net = built.phases[-1].trains.eval()
    before, state = apart(net, stuff.teacher, stuff, numbers), toy.state(stuff.teacher.net)
    toy.train(built, numbers)
    after = apart(net.eval(), stuff.teacher, stuff, numbers)
    assert all(a < 0.3 * b for a, b in zip(after, before)), (before, after)
    assert toy.same(state, toy.state(stuff.teacher.net)) and all(p.grad is None for p in stuff.teacher.net.parameters())


def test_labels_are_not_looked_at():
    def ends(flip):
        stuff, numbers = taught(), toy.recipe()
        if flip:
            stuff.rows = {
                "toy3": stuff.rows["toy3"].map(lambda r: {"label": (r["label"] + 1) % 3}, load_from_cache_file=False)
            }
        built = build(ROW, stuff, numbers)
        toy.train(built, numbers)
        return toy.state(built.net)

    assert toy.same(ends(False), ends(True))


def test_a_batch_carries_what_the_teacher_says_of_its_own_items():
    stuff, numbers = taught(), toy.recipe()
    feed = TrainingBatches(stuff, numbers, text_settings(ROW, stuff, numbers), {"", "_aug"})
    for batch in feed.batches(1):
        with torch.no_grad():
            said = stuff.teacher.net(batch, ("logits", "logits_aug"))
        for s in ("", "_aug"):
            assert torch.allclose(said["logits" + s].softmax(-1), batch["teacher" + s], atol=1e-6)
    portions = TrainingBatches(stuff, replace(numbers, accumulation=2), feed.own.text, {"", "_aug"}).batches(1)[0]
    assert torch.equal(torch.cat([b["teacher_aug"] for _, b in portions]), feed.batches(1)[0]["teacher_aug"])


def test_other_trainings_have_no_teacher():
    "Their batches and the parts of their keys are what they were"
    stuff, numbers = toy.material("toy3"), toy.recipe()
    batch = TrainingBatches(stuff, numbers, text_settings(methods["cosda_ml"], stuff, numbers), {"_aug"}).batches(0)[0]
    assert set(batch) == {"x_aug", "y", "task"}
    data = data_of("pawsx")
    assert "teacher" not in digests(data, methods["cosda_ml"], [data.target])


# the teacher


def answers(teacher, form="_aug"):
    "Return a teacher's answers to a student's views, and the views"
    data = teacher.data
    row = _student_method(teacher.method)
    rows = {data.target.name: data.rows(data.target, "train")}
    stuff = replace(teacher.trainings[0].material, tasks=[data.target], rows=rows, lexicon=data.lexicon, trees={})
    views = Views(
        stuff.tasks, rows, text_settings(row, stuff, replace(toy.recipe(), seed=data.job.seed, max_length=32))
    )
    return views, teacher(views, ("", form), 0, Accelerator(cpu=True))


@pytest.mark.parametrize(
    "method, changes", [("macular", {}), ("macular_nots", {}), ("finetune_x2", {"rounds": 1}), ("syn", REAL)]
)
def test_any_run_can_teach(done, method, changes):
    """Its outputs for texts as they are equal its own evaluation's, whatever form it reads them in, whichever
    of its heads it is"""
    teacher = Teacher(done(method, **changes))
    views, said = answers(teacher)
    data, task = teacher.data, teacher.data.target
    names = [f"p_{label}" for label in task.labels]
    exams = [(t, t.exam(task, {"en": data.rows(task, "train")})) for t in teacher.trainings]
    wanted = sum(evaluate(t.net(t.weights(t.best)), exam, t.head(task))[names].to_numpy() for t, exam in exams) / len(
        exams
    )
    assert (
        said["teacher"].shape == said["teacher_aug"].shape == (48, 2)
        and np.abs(said["teacher"].numpy() - wanted).max() < 1e-5
    )
    assert torch.allclose(said["teacher_aug"].sum(1), torch.ones(48)) and not torch.equal(
        said["teacher"], said["teacher_aug"]
    )
    assert not said["teacher_aug"].requires_grad and not any(net.training for net in teacher.nets)


def test_a_cloze_cannot_teach(done):
    with pytest.raises(ParameterError, match="cannot teach: prompt scores words at a gap"):
        distill(done("prompt", **REAL), quiet)


def test_a_teacher_is_asked_once_for_each_draw(done):
    teacher = Teacher(done("macular"))
    with count_work(teacher.nets[0]) as counts:
        views, first = answers(teacher)
        later = [teacher(views, ("", "_aug"), r, Accelerator(cpu=True)) for r in (0, 1, 2)]
    assert counts["encoder.encoded.texts"] == 48 * 4 and counts["encoder.trained"] == 0  # x once, three draws of 𝒜(x)
    assert all(one["teacher"] is first["teacher"] for one in later) and later[0]["teacher_aug"] is first["teacher_aug"]
    assert not torch.equal(later[1]["teacher_aug"], later[2]["teacher_aug"])


def test_the_teacher_is_untouched(done, student):
    before = files(done("macular").folder), files(training(done("macular")))
    starts(done("macular"), seed=3, rounds=1)
    assert (files(done("macular").folder), files(training(done("macular")))) == before


# a run like any other


def test_a_student_is_a_run(done, student):
    values = student.values
    assert (
        values["status"] == "complete"
        and list(values["trainings"]) == ["macular_student"]
        and values["split"] == "test"
    )
    assert values["trainings"]["macular_student"]["tasks"] == ["pawsx"] and set(student.accuracy["pawsx"]) == {
        "en",
        "de",
    }
    assert values["teacher"] == {
        "run": done("macular").folder.name,
        "method": "macular",
        "seed": 0,
        "trainings": Teacher(done("macular")).key,
    }
    assert f"{done('macular').folder.name} (Macular, seed 0), without labels" in "\n".join(values["notes"][:2])
    r = record(student.folder)
    assert (
        r.cost["encoders"] == 1 and r.parameters["teacher"].startswith("macular ") and r.parameters["stage1"] == "paper"
    )
    text = (student.folder / "result.json").read_text() + (student.folder / "config.json").read_text()
    assert str(student.folder.parent) not in text and "/tmp" not in text
    history = [line for line in read_lines(training(student) / "history.jsonl") if "phase" in line]
    assert {"teacher_kl", "teacher_aug_kl", "loss"} <= set(history[0]) and {line["phase"] for line in history} == {
        "net"
    }


def test_the_same_call_finds_it(done, student):
    before = files(student.folder.parent)
    again, trained = starts(done("macular"))
    assert again.values == student.values and trained == [] and files(student.folder.parent) == before


def test_what_determines_a_student_is_in_its_key(done, student):
    found = [
        student,
        *(
            starts(teacher, rounds=1, **changes)[0]
            for teacher, changes in ((done("macular"), {"seed": 3}), (done("macular_nots"), {}))
        ),
    ]
    assert len({training(r).name for r in found}) == len({r.folder.name for r in found}) == 3
    assert {training(r).name for r in found}.isdisjoint(
        {training(done(name)).name for name in ("macular", "macular_nots")}
    )


def named(run, own_seed=0, **config):
    "Return the name under which a student of some seed stores a teacher of these parameters"
    teacher = Teacher(run, own_seed)
    teacher.config = teacher.config | config
    return teacher.name


def test_students_of_different_teachers_are_not_averaged(done, student):
    usual, one = named(done("macular")), record(student.folder)
    assert one.parameters["teacher"] == usual
    for other in (
        named(done("macular"), alpha=0.2),
        named(done("macular"), seed=3),
    ):  # another teacher; a teacher of another seed than the student's
        with pytest.raises(ParameterError, match="differ in more than their seed.*teacher: macular"):
            same_design([one, replace(one, seed=3, parameters=one.parameters | {"teacher": other})])
    together = named(done("macular"), 3, seed=3)
    assert [
        r.seed for r in same_design([one, replace(one, seed=3, parameters=one.parameters | {"teacher": together})])
    ] == [
        0,
        3,
    ]


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_student_goes_on_to_the_same_bytes(done, student, tmp_path, step):
    "In the middle of a round, and in the next one, whose draw is another"
    folders = []

    def watch(event, facts):
        if event == "start":
            folders.append(facts["folder"])
        if event == "step" and facts["step"] == step and len(folders) == 1:
            (folders[0] / "control").write_text("stop")

    with pytest.raises(Stopped):
        distill(done("macular"), watch, out=str(tmp_path))
    again = distill(done("macular"), watch, out=str(tmp_path))
    assert len(folders) == 2 and [
        line["step"] for line in read_lines(training(again) / "history.jsonl") if "phase" in line
    ] == [1, 2, 3, 4]
    assert files(training(again)) == files(training(student)) and files(again.folder) == files(student.folder)


def test_another_backbone_can_learn_from_it(done):
    small = distill(done("macular"), quiet, backbone="mini-bert", rounds=1)
    assert (
        small.values["backbone"]["name"] == "mini-bert"
        and model_of(select_checkpoint(small))[0].config.model_type == "bert"
    )


def test_licences_of_the_teachers_data_reach_the_student(done, tmp_path):
    teacher = done("macular")
    shutil.copytree(teacher.folder, tmp_path / teacher.folder.name)
    shutil.copytree(teacher.folder.parent / "trainings", tmp_path / "trainings")
    theirs = {
        "file": "x/ads.tsv",
        "sha256": "0",
        "source": "somebody",
        "licence": "CC BY-NC 4.0",
        "noncommercial": True,
    }
    write_json(
        tmp_path / teacher.folder.name / "result.json",
        teacher.values | {"origins": [*teacher.values["origins"], theirs]},
    )
    made = distill(tmp_path / teacher.folder.name, quiet, rounds=1)
    assert (
        theirs in made.values["origins"]
        and "**Non-commercial**" in (export(made, tmp_path / "model") / "README.md").read_text()
    )


# the model


def test_the_model_folder_loads_without_this_package(done, student, tmp_path):
    path, said = (
        export(student, tmp_path / "model"),
        student.predictions.query("language == 'de'").reset_index(drop=True),
    )
    assert read_json(path / "config.json")["architectures"] == ["XLMRobertaForSequenceClassification"]
    rows = load("pawsx", "test", "de", Mini())
    assert np.abs(predict(rows.to_pandas(), path)["p_paraphrase"] - said["p_paraphrase"]).max() < 1e-5
    pairs = [{"text": a, "text_pair": b} for a, b in zip(rows["text_a"][:20], rows["text_b"][:20])]
    found = elsewhere(
        f"import json\nfrom transformers import pipeline\n"
        f"print(json.dumps(pipeline('text-classification', 'model', truncation=True)({pairs!r})))",
        tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert [a["label"] for a in json.loads(found.stdout.splitlines()[-1])] == list(said["prediction"][:20])


def test_the_card_says_whose_student_it_is(done, student, tmp_path):
    text = (export(student, tmp_path / "model") / "README.md").read_text()
    assert (
        "# Student of Macular: PAWS-X" in text
        and done("macular").folder.name in text
        and "teacher_kl × 1, teacher_aug_kl × 1" in text
    )
    assert "needs no other package" in text and len(load_file(tmp_path / "model" / "model.safetensors")) > 10


# what others make of it


def test_tables_comparisons_and_views_take_it(done, student, capsys):
    mine, theirs = record(student.folder), record(done("macular").folder)
    assert "macular_student" in languages([mine, theirs]).markdown() and len(_records_of(student.folder)) == 1
    assert compare([mine], [theirs]).effect == resampled(mine, theirs)
    assert (
        main(["compare", str(student.folder), str(done("macular").folder)]) == 0
        and "macular_student" in capsys.readouterr().out
    )


def test_a_view_finds_its_rows(student):
    data = data_of(run=student.folder)
    assert (
        len(data.rows(data.target, "test", "de")) == 500 and data.job.method == "macular_student" and len(data.lexicon)
    )


def test_the_report_says_what_the_records_say(done, student):
    teacher, plain = done("macular"), done("cosda_ml")
    said, (r, t, p) = student_report(student, plain=plain), [record(x.folder) for x in (student, teacher, plain)]
    assert (
        said.serving is None
        and len(said.notes) == 2
        and str(resampled(r, t)) in said.notes[0]
        and str(resampled(r, p)) in said.notes[1]
    )
    for row in said.accuracies.rows:
        langs = ["en", "de"] if row[0] == "mean" else [row[0]]
        means = [sum(x.accuracy["en_dev"][lang] for lang in langs) / len(langs) for x in (t, r, p)]
        of_teacher, of_plain = resampled(r, t, langs), resampled(r, p, langs)
        assert [row[1].value, row[2].value, row[6].value] == pytest.approx(means)
        assert [row[3].value, row[7].value] == pytest.approx([of_teacher.points, of_plain.points])
        for cell, e in ((row[4], of_teacher), (row[8], of_plain)):
            assert cell == (f"{e.low:+.1f} to {e.high:+.1f}" if e.low == e.low else "no interval")
    both = student.predictions.merge(teacher.predictions, on=["language", "item"]).query("language == 'de'")
    assert _scores_by_language(teacher, student).rows[1][5].value == pytest.approx(
        100 * (both["prediction_x"] == both["prediction_y"]).mean()
    )


def test_an_unequal_rival_is_named(done, student):
    assert any(
        "not trained equally: rounds: 2 and 1" in n
        for n in student_report(student, plain=done("finetune_x2", rounds=1)).notes
    )


def test_teacher_and_student_are_timed_in_turn(done, student):
    asked = []

    def tokenizer(name):
        real = model_of(select_checkpoint(student))[1]

        def words(a, b, **options):
            asked.append((name, len(a)))
            return real(a, b, **options)

        return words

    model = model_of(select_checkpoint(student))[0]
    laps = _latency(
        {name: (model, tokenizer(name)) for name in ("teacher", "student")}, [("a dog", "a cat")] * 5, (1, 4), rounds=3
    )
    assert {k: len(v) for k, v in laps.items()} == {(n, s): 3 for n in ("teacher", "student") for s in (1, 4)} and all(
        v > 0 for lap in laps.values() for v in lap
    )
    for name in ("teacher", "student"):
        assert sorted(n for who, n in asked if who == name) == sorted(
            4 * (5 * [1] + [4, 1])
        )  # one round more, to warm up
    said = student_report(student, serve=model_of, rounds=2).serving
    sizes = [
        sum(p.numel() for p in model_of(select_checkpoint(r))[0].parameters())
        for r in (student.folder.parent / student.values["teacher"]["run"], student)
    ]
    assert [row[0] for row in said.rows] == ["teacher", "student", "teacher : student"] and said.rows[2][
        1
    ] == f"{sizes[0] / sizes[1]:.2f}"


def test_a_teacher_that_is_no_model_is_not_timed(done):
    made = distill(done("finetune_x2", rounds=1), quiet)
    said = student_report(made, serve=model_of)
    assert said.serving is None and "Not timed: " in said.notes[-1] and "two trainings" in said.notes[-1]


# the command line


def test_the_command(done, student, capsys):
    assert main(["distill", str(done("macular").folder), "--plain", str(done("cosda_ml").folder)]) == 0
    said = capsys.readouterr().out
    assert (
        "**student − teacher**" in said
        and "| teacher : student |" in said
        and str(student.folder) in said
        and "macular export" in said
    )


def test_the_command_ends_with_the_code_of_what_went_wrong(done, tmp_path, capsys):
    teacher = str(done("macular").folder)
    assert [
        main(["distill", teacher, "rounds=0"]),
        main(["distill", teacher, "task=xnli"]),
        main(["distill", str(tmp_path)]),
        main(["distill", teacher, "rounds"]),
    ] == [2, 2, 3, 2]
    assert not any(tmp_path.iterdir()) and "Traceback" not in capsys.readouterr().err


# what is refused


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"task": "xnli"}, "task is the teacher's"),
        ({"method": "cosda_ml"}, "method is the teacher's"),
        ({"alpha": 0.1}, "alpha does nothing to a student"),
        ({"stage1": "xnli"}, "stage1 does nothing"),
        ({"round": 2}, "unknown parameter 'round'. Did you mean 'rounds'"),
        ({"learning_rate": 7}, "at most 1"),
        ({"langs": "xx"}, "unknown language of pawsx 'xx'"),
        ({"backbone": "mini-brt"}, "mini-b"),
    ],
)
def test_wrong_parameters_are_refused_before_a_model_is_loaded(done, monkeypatch, changes, said):
    monkeypatch.setattr("macular.deploy.distill.reopen", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ParameterError, match=re.escape(said)):
        distill(done("macular"), quiet, **changes)


def test_wrong_folders_are_refused(done, student, tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        distill(tmp_path, quiet)
    with pytest.raises(DataError, match="no finished run"):
        distill(training(done("macular")), quiet)
    for what in (distill, rerun, reopen):
        with pytest.raises(ParameterError, match=f"learned from the run {done('macular').folder.name}"):
            what(student.folder)
    with pytest.raises(ParameterError, match="is no student.*macular distill"):
        student_report(done("macular"))
    with pytest.raises(ParameterError, match="not from"):
        student_report(student, done("cosda_ml"))


def test_a_teacher_without_its_weights_or_backbone_is_refused(done, tmp_path):
    teacher = done("macular")
    shutil.copytree(teacher.folder, tmp_path / teacher.folder.name)
    with pytest.raises(DataError, match="Runs and their trainings go together"):
        distill(tmp_path / teacher.folder.name, quiet)
    (tmp_path / "trainings").symlink_to(teacher.folder.parent / "trainings")
    write_json(
        tmp_path / teacher.folder.name / "result.json",
        teacher.values | {"backbone": teacher.values["backbone"] | {"sha256": {}}},
    )
    with pytest.raises(DataError, match="is not the one that"):
        distill(tmp_path / teacher.folder.name, quiet)
    assert result_of(teacher.folder).values == teacher.values
