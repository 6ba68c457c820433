"""Real data: halves of dev, the gate before the rows, records without text, and an acceptance check that fails
aloud."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from fake_hub import fill, serve

from macular.core import number
from macular.data.mini_world import Mini
from macular.data.sources import Folder
from macular.data.tasks import DevSplit, load, scored_half, tasks
from macular.exceptions import DataError, NumericError, ParameterError, SetupError
from macular.jobs.plan import plan
from macular.results.diagnostics import _mean_above, majority_check, simulate
from macular.results.records import Record, from_lines, record
from macular.results.tables import languages
from macular.train.config import Job
from macular.train.resolve import ALGORITHM
from macular.train.run import run

pytestmark = pytest.mark.slow

RECORDS = sorted((ROOT / "nbs" / "records" / "real80").glob("*.jsonl"))
SMALL = Mini(train=48, dev=40, test=8)


def code(name):
    return [c.source for c in nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4).cells if c.cell_type == "code"]


def definitions(name):
    "Run the imports and definitions of a notebook, and nothing else of it"
    names = {}
    for source in code(name):
        found = ast.parse(source).body
        if all(
            isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.AnnAssign))
            or isinstance(n, ast.Assign)
            and ast.unparse(n.targets[0]).strip("()")[0].isupper()
            for n in found
        ):
            exec(source, names)
    return names


# halves


@pytest.mark.parametrize("n", [2490, 2000, 300])
def test_halves_are_about_equal(n):
    assert abs(scored_half(range(n)).sum() - n / 2) < 3 * np.sqrt(n) / 2


def test_halves_know_the_id_alone():
    ids = [f"item {i}" for i in range(200)]
    order = np.random.default_rng(0).permutation(200)
    assert (scored_half([ids[i] for i in order]) == scored_half(ids)[order]).all()
    assert (scored_half(range(20)) == scored_half(map(str, range(20)))).all()


def test_halves_are_the_same_ones_tomorrow():
    "Another hash would move items from the half that selects to the half that is scored"
    assert (
        "".join(map(str, scored_half(range(24)).astype(int)))
        == "".join(str(number(f"half of {i}") % 2) for i in range(24))
        == HALVES
    )


HALVES = "100001011001111001000111"


@pytest.mark.parametrize("task", ["xnli", "qam"])
def test_halves_are_disjoint_and_whole_in_every_language(task):
    source = DevSplit(SMALL)
    for lang in ("en", "de", "fr"):
        chosen, scored, whole = (
            load(task, "dev", lang, source),
            load(task, "test", lang, source),
            load(task, "dev", lang, SMALL),
        )
        assert not set(chosen["id"]) & set(scored["id"]) and sorted([*chosen["id"], *scored["id"]]) == sorted(
            whole["id"]
        )
        assert dict(zip(whole["id"], whole["text_b"])).items() >= dict(zip(scored["id"], scored["text_b"])).items()
    assert set(scored["id"]) == set(load(task, "test", "en", source)["id"])
    assert load(task, "train", "en", source)["id"][:] == load(task, "train", "en", SMALL)["id"][:]
    assert source.langs(tasks[task], "test") == SMALL.langs(tasks[task], "dev") and source.provenance(
        tasks[task], "test", "de"
    ) == SMALL.provenance(tasks[task], "dev", "de")


def test_halves_of_the_real_rows(shared):
    source = DevSplit(Folder(shared))
    for task, n in (("xnli", 2490), ("pawsx", 2000)):
        scored = {x: load(task, "test", x, source)["id"][:] for x in source.langs(tasks[task], "test")}
        assert len(scored) == len(tasks[task].langs) and len(set(map(tuple, scored.values()))) == 1
        assert abs(len(scored["en"]) - n / 2) < 60 and len(load(task, "dev", "en", source)) == n - len(scored["en"])


def test_what_selects_is_not_scored(tmp_path):
    found = run(
        Job(task="qam", method="finetune", preset="mini", rounds=2, out=str(tmp_path)),
        lambda *_: None,
        source=DevSplit(SMALL),
    )
    assert found.values["split"] == "test" and scored_half(found.predictions["item"]).all()
    n = len(load("qam", "dev", "en", DevSplit(SMALL)))
    assert (
        all(
            abs(d["qam"] * n / 100 - round(d["qam"] * n / 100)) < 1e-9
            for d in found.values["trainings"]["finetune"]["dev"]
        )
        and n != len(found.predictions) / 3
    )


# the gate

THIRD = Record("majority", "xnli", {"en_dev": dict.fromkeys(("en", "de", "sw"), 100 / 3)})


def simulated(en, de, sw, seeds=1, items=1000):
    return simulate("finetune", "xnli", {"en": en, "de": de, "sw": sw}, seeds, items)


@pytest.mark.parametrize(
    "levels, passed", [((65, 45, 42), True), ((65, 33, 34), False), ((35, 45, 42), False), ((34, 33, 33), False)]
)
@pytest.mark.parametrize("seeds", [1, 4])
def test_the_gate_opens_only_for_both(levels, passed, seeds):
    found = majority_check(simulated(*levels, seeds), THIRD)
    assert (
        found.passed is passed
        and ("can be compared" in found.sentence) is passed
        and ("too weak for this comparison" in found.sentence) is not passed
    )


def exactly(share, n):
    "A run that is right on a share of the items, the same ones in every language"
    right = np.arange(n) < round(share * n)
    langs = ("en", "de", "sw")
    return Record(
        "finetune",
        "xnli",
        {"en_dev": dict.fromkeys(langs, 100 * int(right.sum()) / n)},
        0,
        correct=dict.fromkeys(langs, right),
        items=dict.fromkeys(langs, "same"),
    )


def test_a_mean_above_the_margin_is_not_enough():
    "A difference that chance in the items explains does not pass the check; more of the same items do"
    floor = Record("majority", "xnli", {"en_dev": {"en": 20.0, "de": 35.0, "sw": 35.0}})
    few, many = (majority_check([exactly(0.40, n)], floor) for n in (200, 20_000))
    assert few.others.points == many.others.points == 5 and few.others.low < 2 < many.others.low
    assert not few.passed and many.passed


def test_the_interval_is_the_binomial_one():
    n, share = 2000, 0.4
    found, se = _mean_above([exactly(share, n)], 30.0), 100 * np.sqrt(share * (1 - share) / n)
    assert found.points == pytest.approx(10) and (found.high - found.low) / 2 == pytest.approx(1.96 * se, rel=0.01)


def test_languages_whose_sets_differ_are_averaged():
    r = exactly(0.5, 100)
    other = replace(
        r, accuracy={"en_dev": {"en": 50.0, "de": 50.0, "sw": 50.0}}, correct=r.correct | {"sw": np.arange(60) < 30}
    )
    assert _mean_above([other], 30.0).high < _mean_above([r], 30.0).high


def test_seeds_count():
    one, wide = (
        _mean_above([exactly(0.5, 1000)], 30.0),
        _mean_above([exactly(0.45, 1000), replace(exactly(0.55, 1000), seed=1)], 30.0),
    )
    assert (
        wide.points == pytest.approx(one.points)
        and wide.low < one.low
        and "2 seeds" in wide.how
        and "one run" in one.how
    )


def test_one_class_never_opens_the_gate():
    r = exactly(0.9, 100)
    fell = replace(r, correct={}, items={}, collapsed=("en", "de", "sw"))
    assert (
        majority_check([r], THIRD).passed
        and not majority_check([fell], THIRD).passed
        and "1 of 1 runs predicted one class" in majority_check([fell], THIRD).sentence
    )


def test_a_table_of_collapsed_runs_says_no_more_than_there_is():
    told = languages([replace(exactly(0.9, 100), collapsed=("en", "de", "sw"))]).markdown()
    assert "1 of 1 seeds collapsed" in told and "nan" not in told


def test_the_gate_compares_what_was_scored_alike():
    with pytest.raises(DataError):
        majority_check(simulated(60, 50, 50), replace(THIRD, split="dev"))
    with pytest.raises(ParameterError):
        majority_check([], THIRD)


# what is committed


def test_there_are_records():
    assert {r.task for path in RECORDS for r in from_lines(path)} == {"xnli", "pawsx"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_records_hold_no_text_and_no_labels(path, request):
    known = {f.name for f in fields(Record)}
    for line in path.read_text("utf-8").splitlines():
        values = json.loads(line)
        packed = (values.pop("correct", None) or {}).pop("bits", "")
        assert values.keys() <= known and len(packed) < 6000 and len(json.dumps(values)) < 6000 and line.isascii()
        found = {x for label in tasks[values["task"]].labels for x in [label] if f'"{label}"' in line}
        assert (
            not found
            and (values["method"] == "majority") <= (not packed)
            and bool(values.get("collapsed")) <= (not packed)
        )


def test_records_hold_none_of_the_texts(shared):
    committed = "".join(path.read_text("utf-8") for path in RECORDS)
    for task in ("xnli", "pawsx"):
        rows = load(task, "dev", "en", Folder(shared))
        assert not [t for column in ("text_a", "text_b") for t in rows[column] if len(t) > 20 and t in committed]


def test_records_are_of_todays_algorithm_and_of_halves():
    found = [r for path in RECORDS for r in from_lines(path)]
    assert all(r.algorithm == ALGORITHM for r in found if r.method != "majority") and {r.split for r in found} == {
        "half of dev"
    }
    sizes = {r.task: {len(c) for c in r.correct.values()} for r in found if r.correct}
    assert all(
        len(s) == 1 and abs(s.copy().pop() - n / 2) < 60
        for t, n in (("xnli", 2490), ("pawsx", 2000))
        if (s := sizes.get(t))
    )


def test_the_notebook_says_what_its_records_say():
    ours, floors = definitions("paper/09_real")["read"](ROOT / "nbs" / "records" / "real80")
    shown = json.dumps(
        [c.get("outputs", []) for c in nbformat.read(ROOT / "nbs" / "paper/09_real.ipynb", 4).cells], ensure_ascii=False
    )
    for task, floor in floors.items():
        assert majority_check([r for r in ours if (r.task, r.method) == (task, "finetune")], floor).sentence in shown


# the notebook as a job


@pytest.fixture
def real(tmp_path):
    "paper/09_real's functions on a very small world"
    names = definitions("paper/09_real")
    names |= {
        "rows_of": lambda folder: DevSplit(SMALL),
        "model": "mini-xlmr",
        "data_dir": "",
        "out": str(tmp_path / "runs"),
        "rounds": 1,
        "methods": "finetune_x2",
        "plan": lambda rows: plan([r | {"langs": ("de", "fr"), "lexicon_dir": ""} for r in rows]),
    }
    names["run"] = partial(lambda run, job, source: run(job, lambda *_: None, source=source), names["run"])
    return names


def test_a_closed_gate_ends_it(real, tmp_path):
    real["do_all"](tmp_path / "records")
    ours, floors = real["read"](tmp_path / "records")
    assert [(r.task, r.method, r.split) for r in ours] == [
        ("xnli", "finetune", "half of dev"),
        ("pawsx", "finetune", "half of dev"),
    ] and set(floors) == {"xnli", "pawsx"}
    labels = pd.Series(load("xnli", "test", "de", DevSplit(SMALL))["label"][:])
    assert floors["xnli"].accuracy["en_dev"]["de"] == pytest.approx(100 * labels.value_counts(normalize=True).max())


def test_an_open_gate_goes_on_with_its_task(real, tmp_path):
    real["majority_check"] = lambda records, floor: SimpleNamespace(passed=floor.task == "pawsx")
    real["do_all"](tmp_path / "records")
    assert [(r.task, r.method) for r in real["read"](tmp_path / "records")[0]] == [
        ("xnli", "finetune"),
        ("pawsx", "finetune"),
        ("pawsx", "finetune_x2"),
    ]


def test_what_collapsed_keeps_no_bits(real, tmp_path):
    found = run(
        Job(task="qam", method="finetune", preset="mini", rounds=1, out=str(tmp_path)),
        lambda *_: None,
        source=DevSplit(SMALL),
    )
    frame = found.predictions
    for one_class in (False, True):
        frame.assign(prediction="yes" if one_class else np.where(frame.index % 2, "yes", "no")).to_parquet(
            found.folder / "predictions.parquet", index=False
        )
        values = json.loads((found.folder / "result.json").read_text())
        (found.folder / "result.json").write_text(json.dumps(values | {"selections": {}}))
        assert bool(real["kept"](found.folder).correct) is not one_class and record(found.folder).correct


def test_no_seed_and_failed_jobs_are_told(real, tmp_path):
    real["first"] = 1
    with pytest.raises(ParameterError, match="no seed"):
        real["do_all"](tmp_path)

    class Failed(list):
        states = [{"state": "failed", "error": "DataError", "message": "no rows"}]

    with pytest.raises(DataError, match="1 of 1 jobs are not done: DataError no rows"):
        real["finished"](Failed([1]))


# acceptance


@pytest.fixture(scope="module")
def check():
    return definitions("benchmarks/acceptance")


def results(check, accuracy=None, split="test", langs=None):
    "Records as the check's jobs would leave them, in the middle of every range unless another accuracy is given"
    found = {}
    for e in check["PUBLISHED"]:
        found.setdefault((e.task, e.backbone), {})[e.what] = accuracy or (e.low + e.high) / 2
    return [
        Record(
            "finetune",
            t,
            {"en_dev": dict.fromkeys(langs or tasks[t].langs, v.get(check["TEST"], 50.0))},
            0,
            b.split("/")[-1],
            split=split,
            dev=(40.0, v.get(check["DEV"], 50.0)),
        )
        for (t, b), v in found.items()
    ]


def test_what_is_in_range_is_accepted(check):
    rows = check["compared"](check["PUBLISHED"], results(check))
    assert (
        len(rows) == len(check["PUBLISHED"])
        and {r["verdict"] for r in rows} == {"in range"}
        and check["accept"](rows) is None
    )


@pytest.mark.parametrize("accuracy, fails", [(65.0, 4), (82.0, 3), (20.0, 5), (100.0, 5)])
def test_what_is_out_of_range_fails_aloud(check, accuracy, fails):
    rows = check["compared"](check["PUBLISHED"], results(check, accuracy))
    with pytest.raises(NumericError) as e:
        check["accept"](rows)
    assert f"{fails} of 5 checks failed" in str(e.value) and f"{accuracy:.2f}, expected" in str(e.value)
    assert len(str(e.value)) <= 1000 and len(str(e.value).splitlines()) <= 12


@pytest.mark.parametrize("spoilt", [dict(split="dev"), dict(langs=("en", "de"))])
def test_other_rows_measure_nothing(check, spoilt):
    rows = check["compared"](check["PUBLISHED"], results(check, **spoilt))
    assert {r["what"] for r in rows if r["measured"] == "not measured"} == {check["TEST"]}
    with pytest.raises(NumericError, match="3 of 5"):
        check["accept"](rows)


def test_a_job_that_is_missing_fails(check):
    with pytest.raises(NumericError, match="not measured"):
        check["accept"](check["compared"](check["PUBLISHED"], results(check)[:-1]))


def test_the_hubs_jobs_are_the_papers(check):
    jobs = check["jobs"](check["PUBLISHED"], "hub", "runs/x")
    assert {(j.task, j.backbone, j.preset, j.method, j.data_dir, j.learning_rate) for j in jobs} == {
        ("xnli", check["MBERT"], "paper", "finetune", "", None),
        ("pawsx", check["MBERT"], "paper", "finetune", "", None),
        ("xnli", check["XLMR"], "paper", "finetune", "", 1e-5),
    }


def test_without_a_gpu_the_hub_is_refused(check):
    assert (
        check["chosen"]("auto", gpu=False) == "mini" == check["chosen"]("mini", gpu=True)
        and check["chosen"]("auto", gpu=True) == "hub"
    )
    with pytest.raises(SetupError, match="GPU"):
        check["chosen"]("hub", gpu=False)
    with pytest.raises(ParameterError, match="Did you mean 'mini'"):
        check["chosen"]("mni", gpu=False)


def test_the_notebook_ends_with_the_error(monkeypatch):
    "The whole job in the mini world, with too few rows to learn from"
    monkeypatch.setenv("IN_TEST", "1")
    names = {}
    with pytest.raises(NumericError, match="checks failed"):
        for source in code("benchmarks/acceptance"):
            exec(source, names)
            if names.get("plan") is plan:
                names["plan"] = lambda rows: plan([r | {"max_train": 32, "rounds": 1} for r in rows])
    assert [s["state"] for s in names["done"].states] == ["done"] and len(names["rows"]) == 2


STAND_IN = """
import sys, nbformat
names = {}
for cell in nbformat.read(sys.argv[1], 4).cells:
    if cell.cell_type == "code": exec(cell.source, names)
    if "chosen" in names: names["chosen"] = lambda world, gpu: "hub"
"""


def test_the_hubs_rows_go_through_it(tmp_path):
    """On a stand-in of the hub with 60 rows, a random mBERT and no XLM-R: a number out of range and a job that
    failed are both told"""
    with serve(fill(tmp_path / "hub")) as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "cache"),
            "IN_TEST": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", STAND_IN, str(ROOT / "nbs" / "benchmarks" / "acceptance.ipynb")],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
    told = done.stderr.split("macular.core.NumericError: ")[-1]
    assert done.returncode == 1 and "of 5 checks failed" in told, done.stderr[-2000:]
    assert (
        "XNLI, xlm-roberta-base, all languages, test: not measured" in told
        and "XNLI, bert-base-multilingual-cased, all languages, test: not" not in told
    )
    assert {p.split("/resolve/")[0] for p in hub.asked if "/resolve/" in p} >= {
        "/datasets/facebook/xnli",
        "/datasets/google-research-datasets/paws-x",
    }
