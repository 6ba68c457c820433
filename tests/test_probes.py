"""Probes and CKA on data whose truth is known, and features against a direct computation."""

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from macular.exceptions import DataError, ParameterError
from macular.jobs.engines import compute
from macular.jobs.rerun import encode_with_run, reopen
from macular.results.diagnostics import _held_out, cka, probe, proxy_a_distance
from macular.train.config import check


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=20, max_size=200), st.integers(0, 5))
def test_an_item_stays_on_one_side(items, seed):
    items = np.array(items)
    out = _held_out(items, seed)
    assert not set(items[out]) & set(items[~out])


def test_random_labels_are_at_chance_and_a_line_is_found():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 12)), rng.integers(0, 3, 900)
    at_chance = probe(x, y)
    assert at_chance.low < 100 / 3 < at_chance.high
    assert probe(x + 8 * np.eye(12)[y], y).accuracy == 100


def test_translations_on_both_sides_would_be_a_leak():
    "Two hundred items, a class each at random, ten copies: told by item it is chance, told by row it is memory"
    rng = np.random.default_rng(1)
    item = np.repeat(np.arange(200), 10)
    x, y = np.repeat(rng.normal(size=(200, 256)), 10, axis=0), np.repeat(rng.integers(0, 2, 200), 10)
    x += 0.01 * rng.normal(size=x.shape)
    by_item = np.mean([probe(x, y, item, seed).accuracy for seed in range(6)])
    assert by_item < 65 and probe(x, y).accuracy > 80


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_cka_knows_no_rotation_scale_or_shift(seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert (
        np.isclose(cka(x, scale * x @ turn + 3), 1)
        and np.isclose(cka(x @ turn * scale - 1, y), cka(x, y))
        and np.isclose(cka(x, y), cka(y, x))
    )


def test_far_domains_and_the_same():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 400, 5))
    assert proxy_a_distance(a, b + 20) == 2 and abs(proxy_a_distance(a, b)) < 0.4


def test_what_no_probe_can_be_made_of_is_refused():
    x = np.ones((10, 2))
    with pytest.raises(DataError, match="of 1"):
        probe(x, np.zeros(10))
    with pytest.raises(ParameterError, match="as many"):
        probe(x, np.zeros(9))
    with pytest.raises(DataError, match="not finite"):
        probe(x * np.nan, np.arange(10) % 2)
    with pytest.raises(ParameterError, match="as many of both"):
        proxy_a_distance(x, x[:5])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    "The folder of all runs: Macular finds its stage 1 there"
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "macular_nots", "macular"])
def test_features_are_what_the_encoders_say_text_by_text(method, out):
    "Packed and bucketed, or one text alone through the stored encoders: the same vectors"
    given = dict(task="qam", method=method, preset="mini", max_train=32, rounds=1, langs="de", max_length=32)
    folder = compute(check(given | {"backbone": str(toy.backbone("xlmr")), "out": str(out)}))
    said = encode_with_run(folder, {"qam": ("en", "de")}, 6)
    data, [training] = reopen(folder)
    net, words = training.net(training.weights(training.best)), AutoTokenizer.from_pretrained(data.backbone)
    rows = {lang: {r["id"]: r for r in data.rows(data.task("qam"), "test", lang)} for lang in ("en", "de")}

    @torch.no_grad()
    def alone(encoder, lang, item):
        r = rows[lang][item]
        return encoder.body(**words(r["text_a"], r["text_b"], truncation=True, max_length=32, return_tensors="pt"))[
            0
        ].numpy()

    encoders = (
        {"e_m": net.shared, "e_t": net.encoder}
        if method == "macular"
        else {"e_m" if method == "macular_nots" else "e_t": net.encoder}
    )
    assert set(said) == {"task", "language", "item", "label", "v"} | set(encoders) and len(said["item"]) == 12
    assert list(said["item"][:6]) == list(said["item"][6:]) and list(said["language"]) == ["en"] * 6 + ["de"] * 6
    for name, encoder in encoders.items():
        direct = np.stack([alone(encoder, *at) for at in zip(said["language"], said["item"])])
        assert np.allclose(said[name], direct, atol=2e-5) and direct.std(0).max() > 0.01, name
    if method == "macular":
        assert np.allclose(said["v"], 0.5 * said["e_m"] + 0.5 * said["e_t"], atol=1e-6)
    else:
        assert np.array_equal(said["v"], said[next(iter(encoders))])
