"""Training only the embedding rows in use gives the parameters of a training of the whole embedding."""

from dataclasses import replace

import pytest
import torch
import toy
from transformers import AutoModelForMaskedLM, BertForMaskedLM

import macular.model.vocabulary
import macular.train.build
from macular.exceptions import ParameterError, StorageError
from macular.model.modules import load_encoder
from macular.model.vocabulary import TrimmedEmbedding, _find_vocabulary, _trained_ids, whole
from macular.train.build import build, build_net
from macular.train.checkpoints import _weights, load_weights
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
@pytest.mark.quick_cases(1)
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


def encoder(kind="bert", ids=(0, 1, 2, 3, 7, 20), **options):
    return load_encoder(toy.backbone(kind), 0, ids=torch.tensor(ids), **options)


def test_untrained_rows_are_the_backbones():
    whole_one, found = load_encoder(toy.backbone(), 0), encoder().eval()
    every = torch.arange(whole_one.embedding.num_embeddings)
    assert torch.equal(found.embedding(every[None]), whole_one.embedding(every[None]))
    assert len(found.embedding.read) == len(every) - 6
    assert torch.equal(found.embedding(every[None]), whole_one.embedding(every[None]))  # now they are known
    assert found.double().embedding(every).dtype == torch.float64
    assert found.config.vocab_size == len(every) and found.made == whole_one.made
    other = {n: p for n, p in found.float().named_parameters() if "word_embeddings" not in n}
    assert toy.same(other, {n: p for n, p in whole_one.named_parameters() if n in other})


def test_a_token_without_a_row_is_an_error_in_training():
    embedding = encoder().eval().embedding
    embedding(torch.tensor([5]))  # a row that is read is not trained
    for token in (4, 5):
        with pytest.raises(ParameterError, match=f"token {token} is in a batch, but not in the texts"):
            embedding.train()(torch.tensor([[0, 7, token]]))
    with pytest.raises(IndexError):
        embedding(torch.tensor([10**6]))


def test_weights_of_other_rows_are_refused():
    state = encoder(ids=(0, 1, 2, 3, 8, 20)).state_dict()
    with pytest.raises(StorageError, match="6 rows of the embedding, of other tokens"):
        encoder().load_state_dict(state)


def test_added_rows_keep_the_trained_ones():
    few = encoder().embedding
    with torch.no_grad():
        few.weight += 1
    more = few.include(torch.tensor([7, 5, 30]))
    assert more.token_ids.tolist() == [0, 1, 2, 3, 5, 7, 20, 30] and not more.weight.grad
    every = torch.arange(40)
    assert torch.equal(few.eval()(every), more.eval()(every))


def test_stored_weights_without_their_backbone(tmp_path):
    weights = encoder().state_dict()
    assert whole({"a": weights["body.model.bert.pooler.dense.bias"]}, tmp_path).keys() == {"a"}
    with pytest.raises(StorageError, match="the other rows of the embedding"):
        whole(weights, tmp_path)


@pytest.mark.parametrize("name", ["finetune", "prompt", "macular"])
def test_a_reopened_net_is_the_trained_one(name):
    built, stuff, weights = trained(name, "bert", trim=True, rounds=1)
    net = build_net(method(name), stuff, toy.recipe(), _trained_ids(weights)).double()
    load_weights(net, weights)
    assert toy.same(toy.state(net), toy.state(built.net))
    assert not any(n.startswith("shared") for n in weights)


def test_what_is_trained_whole_says_why(monkeypatch):
    def notes(**options):
        built = build(methods["finetune"], toy.material("toy3"), toy.recipe(), **options)
        return [n for n in built.notes if n.startswith("embedding")]

    assert [n.split(";")[0] for n in notes()] == ["embedding: 32 of 115 rows trained, those of the tokens in use"]
    assert notes(trim=False) == []
    monkeypatch.setattr(macular.train.build.TrainingBatches, "token_ids", lambda self, size: range(100))
    assert notes() == ["embedding: all 115 rows trained; the texts use 100"]
    monkeypatch.setattr(macular.model.vocabulary, "_LARGE", 115)
    assert notes() == []
    monkeypatch.undo()
    assert notes() == []


def test_an_embedding_that_is_no_plain_one_is_trained_whole(monkeypatch):
    class Scaled(torch.nn.Embedding):
        pass

    def found(embedding):
        monkeypatch.setattr(BertForMaskedLM, "get_input_embeddings", lambda self: embedding)
        return _find_vocabulary(toy.backbone(), AutoModelForMaskedLM)

    assert found(Scaled(115, 16)) == (None, "it is a Scaled")
    reason = "its rows are rescaled, or its gradient is sparse"
    assert found(torch.nn.Embedding(115, 16, max_norm=1.0)) == (None, reason)
