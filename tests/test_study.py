"""The records of the mini study: whole, small, and made by today's code."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy import stats

from macular.jobs.plan import plan
from macular.results.compare import _USUAL, ablation, compared, differences_by_task, forest, sides, study, summarize
from macular.results.diagnostics import detectable
from macular.results.formats import title
from macular.results.records import from_lines
from macular.results.statistics import holm
from macular.results.tables import TableOptions, overview
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
        "run `papermill nbs/study.ipynb runs/study.ipynb -p preset mini` again"
    )
    assert {(r.preset, r.split) for records in SEEDS.values() for r in records} == {("mini", "test")}


def test_records_know_what_each_training_cost():
    for records in SEEDS.values():
        for r in records:
            assert r.cost["steps"].keys() == r.cost["forwards"].keys() == r.trainings.keys()
            assert min(r.cost["steps"].values()) > 0 and r.cost["forwards"][[*r.trainings][-1]] >= 3 * 3 * 75


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
    assert [c.effect.verdict for c in found.values()] == ["significant", "not significant"]
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
    assert "Holm over the tasks of each pair" in said and "Minimum detectable difference at 80 % power" in said


TASKS = ("pawsx", "xnli", "qam", "qadsm")


def shifted_by(gaps):
    "Records of Macular and of two ablations on four tasks: ablation -> task -> Macular − the ablation, by seed"
    found = []
    for task in TASKS:
        [first] = study(method="macular", task=task, seed=0)
        for method, of in {"macular": dict.fromkeys(TASKS, np.zeros(5)), **gaps}.items():
            for seed, gap in enumerate(of[task]):
                accuracy = {"en_dev": {"en": 60.0 - float(gap)}}
                found.append(replace(first, method=method, seed=seed, accuracy=accuracy, correct={}, items={}))
    return found


def with_p(p, points=1.0):
    "Five differences whose paired test has about this p-value"
    unit = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    return points + unit * points * 5**0.5 / stats.t.isf(p / 2, 4) / unit.std(ddof=1)


def test_a_pair_has_one_verdict_in_tables_figures_and_sentences():
    "Holm over the pair's tasks, whatever other pairs stand beside it"
    of = dict(zip(TASKS, map(with_p, (0.011, 0.3, 0.4, 0.5))))
    other = dict(zip(TASKS, map(with_p, (0.7, 0.6, 0.8, 0.9))))
    records = shifted_by({"macular_wo_lang_adv": of, "macular_wo_task_adv": other})
    pairs = [("macular", "macular_wo_lang_adv"), ("macular", "macular_wo_task_adv")]
    effects = differences_by_task(records, *pairs[0])
    alone, both = ([c.effect for c in compared(records, pairs[:n]).values()][:4] for n in (1, 2))
    wanted = ["significant", *["not significant"] * 3]
    assert effects["pawsx"].holm == pytest.approx(4 * 0.011)
    assert [e.verdict for e in effects.values()] == [e.verdict for e in alone] == [e.verdict for e in both] == wanted
    assert [row[-1] for row in ablation(records, *pairs).rows][:4] == wanted
    assert "w/o language adversary: significant: PAWS-X +1.0; not significant: XNLI" in summarize(records, *pairs)
    row = next(r for r in overview(records, TableOptions("macular")).rows if "language" in r[0])
    assert [c.mark for c in row[1:5]] == ["↓", "", "", ""]
    figure = forest({title(b): differences_by_task(records, a, b) for a, b in pairs})
    filled = [[line.get_mfc() != "white" for line in ax.lines if line.get_marker() == "o"] for ax in figure.axes]
    assert filled == [[True, False, False, False], [False] * 4]


def test_the_detectable_difference_is_after_holm():
    "One real difference among the four of a pair: found in 80 of 100 simulated studies"
    rng, sd = np.random.default_rng(0), 2.0
    noise = rng.normal(0, sd, (4, 5))
    noise *= sd / noise.std(1, ddof=1, keepdims=True)  # each difference has this deviation
    said = summarize(shifted_by({"macular_wo_lang_adv": dict(zip(TASKS, noise))}), ("macular", "macular_wo_lang_adv"))
    points = float(re.search(r"Holm over 4: ([\d.]+) points", said)[1])
    assert points == pytest.approx(detectable(5, sd, paired=True, tests=4), abs=0.05)
    x = rng.normal(0, sd, (10_000, 4, 5))
    x[:, 0] += points
    power = np.mean([holm(p)[0] < 0.05 for p in stats.ttest_1samp(x, 0, axis=2).pvalue])
    assert 0.79 < power < 0.83
    assert points > 1.2 * detectable(5, sd, paired=True)


@pytest.fixture(scope="module")
def notebook():
    "Names that the study's notebook defines, without its runs"
    cells = [c.source for c in nbformat.read(ROOT / "nbs" / "study.ipynb", 4).cells if c.cell_type == "code"]
    names = {"common": {}}
    for source in cells:
        if source.startswith("import ") or "mini_tiers = " in source or "def " in source:
            exec(source, names)
    return names


def test_the_studys_notebook_plans_what_is_recorded(notebook):
    "Each recorded job is one of the plan's, and none of the plan's is missing from a whole seed"
    for seed in SEEDS:
        tiers = notebook["mini_tiers"][: 2 if seed < 3 else 1]
        grids = [grid for tier in tiers for grids in tier.values() for grid in grids]
        common = {"preset": "mini", "seed": seed, "selections": "last,averaged,all_dev_oracle"}
        jobs = plan([grid | common for grid in grids])
        filled = Counter((j.method, j.task, j.backbone, j.alpha, j.max_train) for j in map(settle, jobs))
        assert filled.keys() == Counter(map(asked, SEEDS[seed])).keys(), f"seed {seed}"
        by_parameters = Counter(map(notebook["of_record"], SEEDS[seed]))
        assert by_parameters == Counter(map(notebook["of_job"], jobs)), "a job with a record would run again"
