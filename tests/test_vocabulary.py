"""Training only the embedding rows in use gives the parameters of a training of the whole embedding."""

from dataclasses import replace

import pytest
import torch
import toy

import macular.model.vocabulary
from macular.model.modules import load_encoder
from macular.model.vocabulary import TrimmedEmbedding, whole
from macular.train.build import build
from macular.train.checkpoints import _weights
from macular.train.methods import methods
from macular.train.trainer import Loop, _Learner

NAMES = ("finetune", "prompt", "rs_da", "syn", "cosda_ml", "macular_nots", "macular", "macular_shared_start")
CLOSE = 1e-10


@pytest.fixture(autouse=True)
def small(monkeypatch):
    "Trim small vocabularies, too"
    monkeypatch.setattr(macular.model.vocabulary, "_LARGE", 10)


def method(name):
    if name == "macular_shared_start":
        macular_row = methods["macular"]
        return replace(macular_row, readings=replace(macular_row.readings, start="shared"))
    return methods[name]


def stage1(kind, dropout, trim):
    "An encoder in which stage 1 has moved some rows of the embedding"
    ids = torch.tensor([1, *range(0, 60, 2)]).sort().values
    f_m = load_encoder(toy.backbone(kind, dropout, seed=1), 9, ids=ids if trim else None)
    with torch.no_grad():
        f_m.embedding.weight[slice(None) if trim else ids] += 0.1
    return f_m.eval()


def trained(name, kind, trim, dropout=0.1, rounds=2):
    "A method after some steps in float64: what it built, its inputs and its weights"
    row = method(name)
    stuff = toy.for_row(row, kind=kind, dropout=dropout)
    if row.shared:
        stuff.shared = stage1(kind, dropout, trim)
    numbers = toy.recipe(rounds=rounds)
    built = build(row, stuff, numbers, trim=trim)
    for phase in built.phases:
        phase.trains.double()
    toy.train(built, numbers)
    learner = _Learner(built.phases[-1], Loop(1), stuff.accelerator)
    return built, stuff, _weights(learner)


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_trimmed_training_equals_a_whole_one(name, kind):
    row = method(name)
    if row.encoder == "syntax" and kind in ("deberta", "modernbert"):
        pytest.skip("trees need another backbone")
    built, stuff, own = trained(name, kind, trim=True)
    plain, _, wanted = trained(name, kind, trim=False)
    embedding = built.net.encoder.embedding
    assert isinstance(embedding, TrimmedEmbedding) and not isinstance(plain.net.encoder.embedding, TrimmedEmbedding)
    assert 0 < len(embedding.weight) < 0.8 * embedding.num_embeddings
    backbone = toy.backbone(kind, 0.1, seed=1) if row.readings.start == "shared" else stuff.backbone
    found = whole(own, backbone)
    biases = [n for n in wanted if found[n].shape != wanted[n].shape]  # of a masked language model's removed last layer
    for n in biases:
        del found[n], wanted[n]
    assert len(biases) <= (name == "prompt")
    moved = toy.gap(wanted, {n: v.double() for n, v in plain.net.state_dict().items() if n in wanted})
    assert moved == 0 and toy.gap(found, wanted) < CLOSE
