"""Intervals cover, tests are exact, means compare over equal sets only; against computations that share no code."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests

from macular.data.tasks import Task, item_shares, scored
from macular.exceptions import DataError, ParameterError
from macular.results.compare import compare
from macular.results.formats import Effect
from macular.results.records import Record, from_dict, from_lines, marked
from macular.results.simulate import Noise, _expected, detectable, deviation, seeds_needed, simulate
from macular.results.statistics import (
    _randomisation,
    by_language,
    by_seed,
    common,
    difference,
    holm,
    item_differences,
    resampled,
    same_design,
    seed_part,
    select,
    summary,
)
from macular.results.tables import TableOptions, languages, overview


def runs(method, accuracies, task="xnli", **more):
    "A record a seed, with accuracies alone: [{language: percent}, …]"
    return [Record(method, task, {"en_dev": a}, seed, **more) for seed, a in enumerate(accuracies)]


def one_lang(method, values):
    return runs(method, [{"en": float(v)} for v in values])


def answered(method, bits, task="xnli", mark="items"):
    "A record a seed, with items: bits is (seeds, languages, items)"
    bits = np.asarray(bits, bool)
    names = ["en", "de", "sw", "zh"][: bits.shape[1]]
    return [
        Record(
            method,
            task,
            {"en_dev": {x: 100 * int(c.sum()) / len(c) for x, c in zip(names, run)}},
            seed,
            correct=dict(zip(names, run)),
            items=dict.fromkeys(names, mark),
        )
        for seed, run in enumerate(bits)
    ]


# coverage, by a simulation of its own


def two_levels(rng, trials, seeds, langs=2, items=300, sd=0.07, hard=1.5, own=0.4, better=0.1):  # noqa: PLR0913
    "Studies with noise of seeds and of items: bits of two methods, and the truth on their items"
    v = rng.normal(0, hard, (trials, 1, 1, items))
    bits, truth = [], []
    for shift in (better, 0.0):
        level = 0.6 + shift + v + rng.normal(0, own, (trials, 1, 1, items))
        run = rng.normal(0, sd, (trials, seeds, 1, 1)) + rng.normal(0, sd, (trials, seeds, langs, 1))
        bits.append(level + run + rng.normal(size=(trials, seeds, langs, items)) > 0)
        truth.append(100 * stats.norm.cdf(level / np.sqrt(1 + 2 * sd**2)).mean((1, 2, 3)))
    return bits, truth[0] - truth[1]


def covered(effects, truth):
    return np.mean([e.low <= t <= e.high for e, t in zip(effects, truth)])


def intervals(a, b, paired, new_items):
    """The ends of many studies' intervals at once, by the formulas of Student, Welch and Satterthwaite; bits are
    (studies, seeds, languages, items)"""
    x, y = (100 * bits.mean((2, 3)) for bits in (a, b))  # (studies, seeds)
    parts = [x - y] if paired else [x, y]
    if new_items:
        parts.append(100 * (a.mean((1, 2)) - b.mean((1, 2))))  # (studies, items)
    variances = np.array([part.var(1, ddof=1) / part.shape[1] for part in parts])  # (parts, studies)
    degrees = np.array([[part.shape[1] - 1] for part in parts])
    total, points = variances.sum(0), (x - y).mean(1)
    half = stats.t.ppf(0.975, total**2 / (variances**2 / degrees).sum(0)) * np.sqrt(total)
    return points - half, points + half


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_over_seeds_cover(seeds):
    """At least 93 % of 1,500 studies for a nominal 95 %, paired and Welch; the part for items covers a new test set,
    too. The formulas are counted, and `difference` gives the same intervals for the first studies"""
    rng, hits = np.random.default_rng(seeds), {"paired": [], "Welch": [], "new items": []}
    scale = np.sqrt(1 + 2 * 0.07**2 + 1.5**2 + 0.4**2)
    population = 100 * (stats.norm.cdf(0.7 / scale) - stats.norm.cdf(0.6 / scale))
    for part in range(5):
        (a, b), truth = two_levels(rng, 300, seeds)
        for name, paired, new_items in (("paired", True, False), ("Welch", False, False), ("new items", False, True)):
            low, high = intervals(a, b, paired, new_items)
            value = population if new_items else truth
            hits[name].append(np.mean((low <= value) & (value <= high)))
            for k in range(0 if part else 8):
                found = difference(answered("a", a[k]), answered("b", b[k]), paired=paired, new_items=new_items)
                assert np.allclose([found.low, found.high], [low[k], high[k]], atol=1e-9)
    assert all(np.mean(h) >= 0.93 for h in hits.values()), {k: np.mean(h) for k, h in hits.items()}


@pytest.mark.slow
def test_items_alone_do_not_cover_methods():
    rng = np.random.default_rng(0)
    (a, b), truth = two_levels(rng, 300, 1, sd=0.15)
    found = covered([resampled(answered("a", x)[0], answered("b", y)[0], draws=300) for x, y in zip(a, b)], truth)
    assert found < 0.75


@pytest.mark.slow
def test_items_alone_cover_two_checkpoints():
    "New items for two fixed programs: there the bootstrap of items is right"
    rng, hits = np.random.default_rng(1), 0
    for _ in range(300):
        v = rng.normal(0, 1.5, 400)
        a, b = (v + s + rng.normal(0, 1, (1, 1, 400)) > 0 for s in (0.7, 0.6))
        e, scale = resampled(answered("a", a)[0], answered("b", b)[0], draws=400), np.sqrt(1 + 1.5**2)
        hits += e.low <= 100 * (stats.norm.cdf(0.7 / scale) - stats.norm.cdf(0.6 / scale)) <= e.high
    assert hits / 300 >= 0.91


# differences


def noisy(low, high):
    return st.lists(st.floats(low, high).map(lambda v: round(v, 3)), min_size=2, max_size=8)


@given(noisy(40, 60), noisy(40, 60))
@settings(max_examples=60, deadline=None)
def test_welch_is_welch(x, y):
    assume(np.var(x) + np.var(y) > 1e-6)
    ours = difference(one_lang("a", x), one_lang("b", y), paired=False)
    theirs = stats.ttest_ind(x, y, equal_var=False)
    if np.isnan(theirs.pvalue):
        return
    assert np.allclose([ours.low, ours.high, ours.p], [*theirs.confidence_interval(0.95), theirs.pvalue], atol=1e-9)


@given(noisy(40, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_paired_is_paired(x, seed):
    y = np.array(x) + np.random.default_rng(seed).normal(1, 1, len(x))
    ours, theirs = difference(one_lang("a", x), one_lang("b", y)), stats.ttest_rel(x, y)
    assert "paired" in ours.how and np.allclose(
        [ours.low, ours.high, ours.p], [*theirs.confidence_interval(0.95), theirs.pvalue], atol=1e-7
    )


def test_pairing_goes_by_seed_not_by_order():
    a, b = one_lang("a", [50, 60, 70]), one_lang("b", [49, 58, 69])
    assert difference(a, b[::-1]) == difference(a, b)


def test_seeds_that_are_not_shared_are_not_paired():
    a, b = one_lang("a", [50, 60, 70]), [replace(r, seed=r.seed + 1) for r in one_lang("b", [49, 58, 69])]
    assert "Welch" in difference(a, b).how
    with pytest.raises(ParameterError, match="cannot be paired"):
        difference(a, b, paired=True)


@pytest.mark.parametrize(
    "x, y",
    [([50.0], [40.0]), ([50.0], [40.0, 41.0]), ([50.0, 50.0], [40.0, 40.0]), ([1 / 3 * 100] * 3, [1 / 3 * 100] * 3)],
)
def test_where_nothing_varies_there_is_no_interval(x, y):
    found = difference(one_lang("a", x), one_lang("b", y))
    assert (
        np.isnan([found.low, found.high, found.p]).all()
        and not found.significant
        and found.verdict == "no interval"
        and "no interval" in str(found)
    )


def test_the_difference_is_swapped_with_its_sides():
    a, b = one_lang("a", [50, 60, 71]), one_lang("b", [49, 58, 69])
    one, other = difference(a, b), difference(b, a)
    assert np.isclose(one.points, -other.points) and np.isclose(one.low, -other.high) and np.isclose(one.p, other.p)


def test_new_items_widen():
    bits = np.random.default_rng(0).random((4, 2, 3, 200)) < [[[[0.7]]], [[[0.7]]], [[[0.6]]], [[[0.6]]]]
    a, b = answered("a", bits[:2].reshape(4, 3, 200)), answered("b", bits[2:].reshape(4, 3, 200))
    small, large = difference(a, b, paired=False), difference(a, b, paired=False, new_items=True)
    d = (
        np.mean([r.correct[x] * 25.0 for r in a for x in r.langs], 0) * 4
        - np.mean([r.correct[x] * 25.0 for r in b for x in r.langs], 0) * 4
    )
    se2 = sum(np.var(by_seed(s), ddof=1) / 4 for s in (a, b))
    assert large.high - large.low > small.high - small.low and np.isclose(small.points, large.points)
    nu = (se2 + d.var(ddof=1) / 200) ** 2 / (
        sum((np.var(by_seed(s), ddof=1) / 4) ** 2 / 3 for s in (a, b)) + (d.var(ddof=1) / 200) ** 2 / 199
    )
    assert np.isclose(large.high - large.points, stats.t.ppf(0.975, nu) * np.sqrt(se2 + d.var(ddof=1) / 200))


def test_significant_is_zero_outside_the_interval():
    assert (
        Effect(1, 0.1, 2, 0.04, "").significant
        and Effect(-1, -2, -0.1, 0.04, "").significant
        and not Effect(1, -0.1, 2, 0.06, "").significant
    )


# which runs, which languages


def test_what_differs_in_more_than_its_seed_is_not_averaged():
    a = [replace(r, parameters={"alpha": 0.5 if r.seed else 0.3}) for r in one_lang("a", [50, 60])]
    with pytest.raises(ParameterError, match="alpha: 0.3 and 0.5.*--where alpha="):
        same_design(a)
    with pytest.raises(ParameterError, match="seed 0 is there more than once"):
        same_design([*one_lang("a", [50]), *one_lang("a", [60])])
    with pytest.raises(ParameterError, match="no records"):
        same_design([])
    with pytest.raises(ParameterError, match="method: a and b"):
        by_seed([*one_lang("a", [50]), *one_lang("b", [60])])


def test_unequal_language_sets_are_refused():
    a, b = runs("a", [{"en": 60.0, "sw": 40.0}] * 2), runs("syn", [{"en": 60.0}] * 2)
    for f in (difference, by_language):
        with pytest.raises(DataError, match="'a' has 2 languages, of which others lack sw"):
            f(a, b)
    assert common(a, b) == ("en",) and difference(a, b, langs=common(a, b)).points == 0
    with pytest.raises(DataError, match="no accuracy for sw"):
        difference(a, b, langs=("en", "sw"))


def test_other_tasks_and_splits_are_refused():
    with pytest.raises(DataError, match="task xnli.*qam"):
        difference(one_lang("a", [1, 2]), runs("b", [{"en": 1.0}, {"en": 2.0}], task="qam"))
    with pytest.raises(DataError, match="split"):
        difference(one_lang("a", [1, 2]), runs("b", [{"en": 1.0}, {"en": 2.0}], split="dev"))


def test_selections():
    a = [replace(r, accuracy={**r.accuracy, "last": {"en": 10.0 + r.seed}}) for r in one_lang("a", [50, 60])]
    assert by_seed(a, selection="last").tolist() == [10, 11]
    with pytest.raises(ParameterError, match="Did you mean 'last'"):
        by_seed(a, selection="lats")
    with pytest.raises(DataError, match="no accuracy 'averaged', only en_dev, last"):
        by_seed(a, selection="averaged")


def test_a_tag_may_have_any_name():
    from macular.results.records import Record

    records = [Record("m", "xnli", {"en_dev": {"en": 50.0}}, tags={"records": str(i), "path": "a"}) for i in range(2)]
    assert select(records, records="1", path="a") == records[1:]


def test_select(root):
    control = from_lines(root / "nbs" / "records" / "control.jsonl")
    assert (
        len(select(control, task=["xnli", "qam"], seed=0, dictionary="own", world="related", backbone="mini-xlmr")) == 8
    )
    with pytest.raises(ParameterError, match="Did you mean 'dictionary'"):
        select(control, dictionarry="own")


# tests on items


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=11))
@settings(max_examples=80, deadline=None)
def test_randomisation_is_exact(d):
    sums = [abs(sum(s * abs(x) for s, x in zip(signs, d))) for signs in itertools.product((-1, 1), repeat=len(d))]
    assert np.isclose(_randomisation(np.array(d)), np.mean([s >= abs(sum(d)) for s in sums]), atol=1e-12)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_of_two_single_runs_it_is_mcnemar(b, c, same):
    assume(b + c)
    d = np.array([1] * b + [-1] * c + [0] * same)
    assert np.isclose(_randomisation(d), stats.binomtest(b, b + c).pvalue, atol=1e-10)


def test_randomisation_against_drawn_signs():
    rng = np.random.default_rng(0)
    d = rng.integers(-5, 6, 300) + (rng.random(300) < 0.12)
    drawn = rng.choice([-1, 1], (20_000, 300)) @ np.abs(d)
    assert abs(_randomisation(d) - np.mean(np.abs(drawn) >= abs(d.sum()))) < 0.015


def test_seed_averaged_differences():
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 2, 50)) < 0.7, rng.random((2, 2, 50)) < 0.6
    found = item_differences(answered("a", x), answered("b", y), "de")
    assert np.allclose(found / 6, x[:, 1].mean(0) - y[:, 1].mean(0))


def test_by_language_against_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.random((4, 3, 120)) < 0.72, rng.random((4, 3, 120)) < 0.6
    found = by_language(answered("a", x), answered("b", y))
    for k, row in enumerate(found):
        d = x[:, k].mean(0) - y[:, k].mean(0)
        drawn = stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=4000, rng=np.random.default_rng(k)
        )
        assert abs(row["p"] - drawn.pvalue) < 0.02 and np.isclose(row["difference"], 100 * d.mean())
    assert np.allclose([r["Holm"] for r in found], holm([r["p"] for r in found]))


def test_other_items_are_not_paired():
    x = np.ones((1, 1, 5), bool)
    with pytest.raises(DataError, match="items in 'en' are not the same"):
        item_differences(answered("a", x), answered("b", x, mark="others"), "en")
    with pytest.raises(DataError, match="holds no items in 'en'"):
        by_language(one_lang("a", [50, 60]), one_lang("b", [50, 60]))
    with pytest.raises(DataError, match="holds no items"):
        resampled(one_lang("a", [50])[0], one_lang("b", [50])[0])
    with pytest.raises(DataError, match="holds no items"):
        difference(one_lang("a", [50, 60]), one_lang("b", [50, 61]), new_items=True)


@pytest.mark.slow
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
@settings(max_examples=80, deadline=None)
def test_holm(ps):
    ours, there = holm(ps), [i for i, p in enumerate(ps) if p == p]
    assert all(np.isnan(q) == (p != p) for p, q in zip(ps, ours))
    if there:
        assert np.allclose(ours[there], multipletests([ps[i] for i in there], method="holm")[1])


def test_resampled_against_scipy():
    rng = np.random.default_rng(5)
    x, y = rng.random((1, 2, 400)) < 0.7, rng.random((1, 2, 400)) < 0.62
    ours = resampled(answered("a", x)[0], answered("b", y)[0])
    d = 100.0 * (x[0].astype(int) - y[0]).mean(0)
    theirs = stats.bootstrap(
        (d,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert np.isclose(ours.points, d.mean()) and abs(ours.low - theirs.low) < 0.3 and abs(ours.high - theirs.high) < 0.3
    assert resampled(answered("a", x)[0], answered("b", y)[0]) == ours and "not of the methods" in str(ours)


# one method


def test_collapsed_runs_are_counted_and_kept():
    a = [replace(r, collapsed=("en",) if r.seed < 2 else ()) for r in one_lang("a", [50, 50, 80, 82, 84])]
    found = summary(a)
    assert (
        (found.collapsed, found.seeds) == (2, 5)
        and np.isclose(found.mean, 69.2)
        and found.without == 82
        and np.isclose(found.sd, np.std([50, 50, 80, 82, 84], ddof=1))
    )
    assert "2 of 5 collapsed; without them 82.0" in str(found)
    assert np.isnan(summary([replace(r, collapsed=("en",)) for r in a]).without)
    assert np.isclose(found.half, stats.t.interval(0.95, 4, 69.2, stats.sem([50, 50, 80, 82, 84]))[1] - 69.2)


def test_a_collapse_elsewhere_is_no_collapsed_run():
    assert summary([replace(r, collapsed=("sw",)) for r in runs("a", [{"en": 60.0, "sw": 33.0}] * 1)]).collapsed == 0


def test_deviation_is_pooled():
    groups = [one_lang("a", [50, 52]), one_lang("b", [60, 61, 65])]
    assert np.isclose(deviation(groups), np.sqrt((np.var([50, 52], ddof=1) + 2 * np.var([60, 61, 65], ddof=1)) / 3))
    with pytest.raises(DataError, match="two seeds"):
        deviation([one_lang("a", [50])])


# designs


@pytest.mark.slow
@pytest.mark.parametrize("seeds, paired", [(3, False), (5, False), (5, True), (10, True)])
def test_detectable_has_the_power_it_says(seeds, paired):
    rng, found = np.random.default_rng(seeds), detectable(seeds, 2.0, paired=paired)
    x = rng.normal(found, 2.0, (20_000, seeds))
    p = (
        stats.ttest_1samp(x, 0, axis=1).pvalue
        if paired
        else stats.ttest_ind(x, rng.normal(0, 2.0, x.shape), axis=1).pvalue
    )
    assert abs(np.mean(p < 0.05) - 0.8) < 0.015


def power_of(n, paired, d, tests=1):
    "The power of a t test by its definition: normal numerator, integrated over quantiles of the deviation"
    df, scale = (n - 1, n**0.5) if paired else (2 * n - 2, (n / 2) ** 0.5)
    critical = stats.t.ppf(1 - 0.025 / tests, df) * np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df)
    return np.mean(stats.norm.sf(critical - d * scale) + stats.norm.cdf(-critical - d * scale))


@pytest.mark.parametrize("paired", [True, False])
def test_detectable_by_the_definition_of_power(paired):
    found = {n: detectable(n, 1.0, paired=paired) for n in (2, 3, 5, 10, 72, 73, 87, 139, 151, 319, 2000)}
    assert list(found.values()) == sorted(found.values(), reverse=True) and min(found.values()) > 0
    assert all(abs(power_of(n, paired, d) - 0.8) < 0.003 for n, d in found.items())


@pytest.mark.parametrize("tests", [2, 4, 12, 24])
def test_detectable_after_holm_by_the_definition_of_power(tests):
    "The worst case: one difference is real, and its p-value must be below 5 % divided by the number of tests"
    for paired in (True, False):
        for n in (2, 3, 4, 5, 10, 300):
            found = detectable(n, 1.0, paired=paired, tests=tests)
            assert abs(power_of(n, paired, found, tests) - 0.8) < 0.005 and found > detectable(n, 1.0, paired=paired)
    assert seeds_needed(0.5, 1.0, tests=tests) > seeds_needed(0.5, 1.0)


@pytest.mark.slow
@given(st.floats(0.05, 3), st.floats(0.05, 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_seeds_needed_is_the_first_that_shows_it(points, sd, paired):
    assume(sd / points < 12)
    n = seeds_needed(points, sd, paired=paired)
    assert detectable(n, sd, paired=paired) <= points and (n == 2 or detectable(n - 1, sd, paired=paired) > points)


@pytest.mark.parametrize(
    "call",
    [
        lambda: detectable(1, 1.0),
        lambda: detectable(3, 0.0),
        lambda: seeds_needed(0.0, 1.0),
        lambda: seeds_needed(1.0, -1.0),
        lambda: detectable(3, float("nan")),
        lambda: detectable(3, 1.0, tests=0),
    ],
)
def test_designs_that_show_nothing_are_refused(call):
    with pytest.raises(ParameterError):
        call()


# the simulation


def test_simulated_studies_repeat_and_have_their_truth():
    levels = {"en": 90.0, "sw": 55.0}
    a = simulate("macular", "xnli", levels, 3)
    assert a == simulate("macular", "xnli", levels, 3) != simulate("macular", "other", levels, 3)
    many = simulate("macular", "xnli", levels, 300, noise=Noise(seed=0.1))
    assert abs(by_seed(many).mean() - _expected("macular", "xnli", levels, noise=Noise(seed=0.1))) < 3 * by_seed(
        many
    ).std(ddof=1) / np.sqrt(300)
    wide = [_expected("macular", f"t{i}", levels) for i in range(200)]
    assert abs(np.mean(wide) - 72.5) < 0.4 and all(r.get("simulated") for r in a)


# a spread that is rounding noise


def equal_gaps(method, base):
    "Records whose differences are all 0.1 but for the last bits of a float"
    levels = (66.1, 70.3, 58.7, 61.9)
    return [
        Record(method, "qam", {"en_dev": {"en": level + base, "de": level / 3 + base}}, seed)
        for seed, level in enumerate(levels)
    ]


def test_differences_that_are_all_equal_have_no_interval():
    a, b = equal_gaps("macular", 0.1), equal_gaps("finetune", 0.0)
    gaps = by_seed(a) - by_seed(b)
    assert 0 < np.ptp(gaps) < 1e-12, "else this tests nothing"
    assert seed_part(gaps) == (0.0, 3)
    found = difference(a, b)
    assert np.isnan([found.low, found.high, found.p]).all() and found.verdict == "no interval"
    assert np.isclose(found.points, 0.1)
    table = languages([*a, *b], TableOptions(against="finetune"))
    assert [c.mark for row in table.rows for c in row[1:4]] == [""] * 6


def test_seeds_that_differ_by_rounding_have_no_spread():
    same = [Record("m", "qam", {"en_dev": {"en": 50.0 + s * 1e-13}}, s) for s in range(3)]
    found = summary(same)
    assert found.sd == 0 and np.isnan(found.half) and deviation([same]) == 0
    assert "±" not in overview(same).rows[0][1].text()


def test_two_runs_that_differ_alike_on_every_item_have_no_interval():
    a, b = (
        Record(m, "qam", {"en_dev": {"en": level}}, 0, correct={"en": np.full(9, level > 0)}, items={"en": "x"})
        for m, level in (("a", 100.0), ("b", 0.0))
    )
    found = resampled(a, b)
    assert found.points == 100 and np.isnan([found.low, found.p]).all()


# macro-F1

LABELS = np.array(["a", "b", "c", "d"])


def frame(seed, n=300, langs=("en", "de"), right=0.7, shares=(0.6, 0.25, 0.15)):
    "Predictions of three labels that occur, with a fourth that is only predicted"
    parts = []
    for i, lang in enumerate(langs):
        rng = np.random.default_rng([7, i])
        gold = rng.choice(3, n, p=shares)  # the same examples for every seed
        rng = np.random.default_rng([seed, i, int(100 * right)])
        given = np.where(rng.random(n) < right, gold, rng.choice(4, n))
        columns = {"item": np.arange(n).astype(str), "language": lang, "label": LABELS[gold]}
        parts.append(pd.DataFrame(columns | {"prediction": LABELS[given]}))
    return pd.concat(parts, ignore_index=True)


def f1_runs(method, seeds, **more):
    return [
        Record(method, "own", seed=s, measure="macro_f1", **marked(frame(1000 * len(method) + s, **more)))
        for s in seeds
    ]


def test_macro_f1_is_over_the_labels_that_occur():
    rows = frame(0)
    for lang, found in rows.groupby("language"):
        gold, given = found["label"], found["prediction"]
        by_label = f1_score(gold, given, labels=["a", "b", "c"], average=None)
        assert np.isclose(scored(rows, "macro_f1")[lang], 100 * by_label.mean())
        assert np.isclose(scored(rows)[lang], 100 * (gold == given).mean())
    one = pd.DataFrame({"language": "en", "label": list("aab"), "prediction": ["a", "a", ""]})
    assert scored(one, "macro_f1") == {"en": 50.0}


@given(st.integers(0, 2**31), st.integers(5, 60))
@settings(max_examples=50, deadline=None)
def test_the_shares_of_items_average_to_macro_f1(seed, n):
    rng = np.random.default_rng(seed)
    gold, given = rng.choice(5, n), rng.choice(6, n)
    wanted = f1_score(gold, given, labels=np.unique(gold), average="macro", zero_division=0)
    assert np.isclose(item_shares(gold, given).mean(), 100 * wanted)


@pytest.mark.slow
def test_shares_vary_as_resampled_macro_f1_does():
    rows = frame(3, n=600, langs=("en",))
    gold, given = (np.searchsorted(LABELS, rows[c]) for c in ("label", "prediction"))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        i = rng.integers(0, len(gold), len(gold))
        drawn.append(100 * f1_score(gold[i], given[i], labels=[0, 1, 2], average="macro"))
    assert np.isclose(np.std(drawn), item_shares(gold, given).std() / np.sqrt(len(gold)), rtol=0.1)


def test_all_statistics_are_of_the_records_measure():
    a, b = f1_runs("macular", range(4), right=0.8), f1_runs("other", range(4), right=0.6)
    means = [scored(frame(7000 + s, right=0.8), "macro_f1") for s in range(4)]
    assert np.allclose(by_seed(a), [np.mean([*m.values()]) for m in means])
    found = difference(a, b)
    assert np.isclose(found.points, by_seed(a).mean() - by_seed(b).mean()) and found.significant
    wider = difference(a, b, new_items=True)
    assert np.isclose(wider.points, found.points) and wider.high > wider.points
    for row in by_language(a, b):
        assert row["verdict"] == "significant" and np.isclose(row["a"], by_seed(a, [row["language"]]).mean())
    once = resampled(a[0], b[0])
    assert once.significant and np.isclose(once.points, by_seed(a[:1])[0] - by_seed(b[:1])[0])
    assert "macro-F1 in percent" in compare(a, b).markdown()
    table = languages([*a, *b], TableOptions(against="other"))
    assert table.caption.startswith("Macro-F1 in percent") and all(c.mark == "↑" for c in table.rows[0][1:4])
    with pytest.raises(DataError, match="on measure macro_f1, 'other' on accuracy"):
        difference(a, [replace(r, measure="accuracy") for r in b])


@pytest.mark.slow
def test_equal_methods_do_not_differ_in_macro_f1():
    "Signs drawn at random: of 100 pairs of equal runs about 5 are significant at 5 %"
    ps = [by_language(*(f1_runs("m" * k, [s], langs=("en",), right=0.6) for k in (1, 2)))[0]["p"] for s in range(100)]
    assert 0 <= sum(p < 0.05 for p in ps) <= 12 and 0.3 < np.mean(ps) < 0.7


def test_a_record_with_predictions_survives_a_file():
    (run,) = f1_runs("macular", [0])
    line = json.loads(json.dumps(run.as_dict()))
    back = from_dict(line)
    assert back == run and back.measure == "macro_f1"
    assert all((back.shares(x) == run.shares(x)).all() for x in run.langs)
    assert len(line["answers"]) < 1200, "300 examples of two languages"
    for broken in ("x", line["answers"][:40]):
        with pytest.raises(DataError, match="items cannot be unpacked"):
            from_dict(line | {"answers": broken})
    assert not {"answers", "labels"} & set(replace(run, measure="accuracy").as_dict()), "no labels where bits suffice"


def test_accuracies_alone_have_no_macro_f1():
    bare = [replace(r, measure="macro_f1") for r in runs("m", [{"en": 50.0}, {"en": 51.0}])]
    with pytest.raises(DataError, match="no macro-F1 'en_dev'"):
        by_seed(bare)


def test_a_task_names_its_measure():
    assert Task("t", labels=("x", "y"), langs="en", measure="macro_f1").measure == "macro_f1"
    with pytest.raises(ParameterError, match="Did you mean 'macro_f1'"):
        Task("t", labels=("x", "y"), langs="en", measure="macro-f1")
