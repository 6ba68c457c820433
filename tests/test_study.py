"""The records of the mini study: whole, small, and made by today's code."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from macular.jobs.plan import plan
from macular.results.compare import _USUAL, ablation, compared, sides, study, summarize, verdicts
from macular.results.records import from_lines
from macular.train.config import check
from macular.train.inputs import Data, digests, trained_on
from macular.train.resolve import ALGORITHM, method_of, settle, training_key
from macular.train.stages import _own_losses

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "nbs" / "records" / "study").glob("seed-*.jsonl"))
SEEDS = {int(f.stem.split("-")[1]): from_lines(f) for f in FILES}


def asked(r):
    return r.method, r.task, r.backbone, r.parameters["alpha"], r.parameters["max_train"]


def test_seeds_are_whole():
    "No job twice, and seeds of one tier hold the same jobs; the second tier is more"
    assert sorted(SEEDS) == list(range(len(SEEDS))), "a seed is missing between others"
    jobs = {seed: Counter(map(asked, records)) for seed, records in SEEDS.items()}
    for seed, found in jobs.items():
        assert max(found.values()) == 1 and {r.seed for r in SEEDS[seed]} == {seed}
        like = jobs[0] if seed < 3 else jobs[3]
        assert found.keys() == like.keys() and like.keys() <= jobs[0].keys(), f"seed {seed}"


def test_records_are_todays():
    assert {r.algorithm for records in SEEDS.values() for r in records} == {ALGORITHM}, (
        "run `papermill nbs/study.ipynb runs/study.ipynb` again"
    )
    assert {(r.preset, r.split) for records in SEEDS.values() for r in records} == {("mini", "test")}


def test_records_are_small_and_hold_no_text():
    assert sum(f.stat().st_size for f in FILES) <= 3 * 2**20
    assert all(set(r.tags) <= {"made_by"} for records in SEEDS.values() for r in records)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "method, task, backbone",
    [
        ("finetune", "pawsx", "mini-xlmr"),
        ("cosda_ml", "qam", "mini-xlmr"),
        ("cosda_ml", "qam", "mini-bert"),
        ("xtune", "qadsm", "mini-xlmr"),
        ("macular_nots", "xnli", "mini-xlmr"),
    ],
)
def test_todays_code_would_store_the_training_under_the_recorded_key(method, task, backbone):
    "Data, encoder, row and settings are what they were: a key of today's says the same as the record's"
    [r] = [r for r in SEEDS[0] if asked(r) == (method, task, backbone, _USUAL["alpha"], _USUAL["max_train"])]
    job = settle(check(dict(method=method, task=task, backbone=backbone, preset="mini", seed=0)))
    data, wanted = Data(job), method_of(job)
    learned, near = trained_on(data, wanted)
    everything = [*learned, *([near] if near else [])]
    assert r.trainings[method] == training_key(
        wanted, everything, job, digests(data, wanted, everything) | {"losses": _own_losses(wanted)}, ""
    )


def test_a_comparison_rests_on_the_seeds_that_both_have():
    "Five seeds of one, three of the other: three pairs"
    [first] = study(method="macular", task="qam", seed=0)
    five, three = (
        [replace(first, seed=s) for s in range(5)],
        [replace(first, method="mtl_ft", seed=s) for s in (1, 2, 7)],
    )
    assert [[r.seed for r in side] for side in sides([*five, *three], "macular", "mtl_ft")["qam"]] == [[1, 2], [1, 2]]
    assert sides(five, "macular", "mtl_ft") == {}


def test_an_ablation_tells_significant_from_not():
    "Shifted by five points with little noise, and by nothing"

    def shifted(r, by):
        return replace(
            r,
            accuracy={s: {x: v + by for x, v in langs.items()} for s, langs in r.accuracy.items()},
            correct={},
            items={},
        )

    [first] = study(method="macular", task="qam", seed=0)
    wobble = (0.0, 0.1, -0.1, 0.2, -0.2)
    whole = [replace(shifted(first, w), seed=s) for s, w in enumerate(wobble)]
    less = [replace(shifted(first, -5 - w), seed=s, method="macular_wo_consistency") for s, w in enumerate(wobble)]
    same = [replace(shifted(first, -w), seed=s, method="macular_wo_lang_adv") for s, w in enumerate(wobble)]
    pairs = [("macular", "macular_wo_consistency"), ("macular", "macular_wo_lang_adv")]
    found = compared([*whole, *less, *same], pairs)
    assert verdicts({key: c.effect for key, c in found.items()}) == ["significant", "not significant"]
    table = ablation([*whole, *less, *same], *pairs)
    assert [line[-1] for line in table.rows] == ["significant", "not significant"]
    assert table.rows[0][-2].text().startswith(
        "+5.0"
    )
    assert "paper: difference" in table.columns and "paper: row" not in table.columns, "no level beside the mini world"
    real = [replace(r, notes=("read from files",)) for r in (*whole, *less, *same)]
    assert {"paper: row", "paper: whole"} <= set(ablation(real, *pairs).columns)
    said = summarize([*whole, *less, *same], *pairs)
    assert " significant: QAM +5.0" in said and "not significant: QAM +0.0" in said
    assert "Holm over all 2 differences" in said and "Minimum detectable difference at 80 % power" in said


@pytest.fixture(scope="module")
def notebook():
    "Names that the study's notebook defines, without its runs"
    cells = [c.source for c in nbformat.read(ROOT / "nbs" / "study.ipynb", 4).cells if c.cell_type == "code"]
    names = {"common": {"preset": "mini"}}
    for source in cells:
        if source.startswith("import ") or "mini_tiers = " in source or "def " in source:
            exec(source, names)
    return names


def test_the_studys_notebook_plans_what_is_recorded(notebook):
    "Each recorded job is one of the plan's, and none of the plan's is missing from a whole seed"
    for seed in SEEDS:
        tiers = notebook["mini_tiers"][: 2 if seed < 3 else 1]
        grids = [grid for tier in tiers for grids in tier.values() for grid in grids]
        jobs = plan([grid | {"preset": "mini", "seed": seed} for grid in grids])
        filled = Counter((j.method, j.task, j.backbone, j.alpha, j.max_train) for j in map(settle, jobs))
        assert filled.keys() == Counter(map(asked, SEEDS[seed])).keys(), f"seed {seed}"
        by_parameters = Counter(map(notebook["of_record"], SEEDS[seed]))
        assert by_parameters == Counter(map(notebook["of_job"], jobs)), "a job with a record would run again"
