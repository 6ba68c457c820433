"""Texts in one row: attention never leaves a text, and nothing but the amount of work differs from one text at a
time."""

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import toy
from conftest import ROOT
from torch import nn
from transformers import AutoModelForSequenceClassification, ModernBertConfig, ModernBertModel

from macular.model.modules import load_encoder
from macular.text import batches as packing
from macular.text.batches import Tokens, cut
from macular.train.methods import Readings, methods

KINDS = ("bert", "xlmr", "modernbert")
LENGTHS = (7, 3, 20, 12, 7, 3, 19, 4, 33, 7)  # unsorted, some equal, most above the toy ModernBERT's window
EXACT = {
    "bert": 1e-12,
    "xlmr": 1e-12,
    "modernbert": 1e-6,
}  # ModernBERT turns queries and keys in float32 whatever it is given


# ------------------------------------------------------------------ texts and encoders
def view(lengths=LENGTHS, kind="bert", seed=0):
    "Texts of random ids, none of them special"
    low, high = 5, len(toy.tokenizer(kind))
    ids = torch.from_numpy(np.random.default_rng(seed).integers(low, high, sum(lengths)))
    found = {"input_ids": ids, "lengths": np.array(lengths)}
    return found | {"token_type_ids": torch.arange(len(ids)) % 3 // 2} if kind == "bert" else found


def encoder(kind="bert", dropout=0.0, double=True):
    found = toy.redraw(load_encoder(toy.backbone(kind, dropout), 0), "packing", kind).eval()
    return found.double() if double else found


def stock(enc):
    "The same weights in a model of transformers that was never touched, with its plainest attention"
    model = AutoModelForSequenceClassification.from_config(deepcopy(enc.config), attn_implementation="eager")
    missing, unexpected = model.load_state_dict(enc.body.model.state_dict(), strict=False)
    assert not unexpected and all(name.split(".")[-2] in ("classifier", "out_proj") for name in missing)
    parent = model if isinstance(model.classifier, nn.Linear) else model.classifier
    setattr(parent, "classifier" if parent is model else "out_proj", nn.Identity())
    return model.to(next(enc.parameters()).dtype).eval()


def one_by_one(model, texts):
    names = [name for name in texts if name != "lengths"]
    parts = zip(*(texts[name].split(texts["lengths"].tolist()) for name in names))
    return torch.cat(
        [
            model(**dict(zip(names, (p[None] for p in part))), attention_mask=torch.ones_like(part[0])[None]).logits
            for part in parts
        ]
    )


def with_groups(monkeypatch, most):
    "Encoders let attention have so many groups"
    real = packing.pack
    monkeypatch.setattr("macular.model.modules.pack", lambda view, start, _, filler: real(view, start, most, filler))


# ------------------------------------------------------------------ the same vectors
@pytest.mark.parametrize("most", [1, 3, 8, 99])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.quick_cases(4)
def test_a_text_in_a_row_is_the_text_alone(kind, most, monkeypatch):
    "However lengths are grouped; in double precision to the last digits, in single to 1e-5"
    with_groups(monkeypatch, most)
    for double, close in ((True, EXACT[kind]), (False, 1e-5)):
        enc, texts = encoder(kind, double=double), view(kind=kind)
        with torch.no_grad():
            together, alone = enc([texts])[0], one_by_one(stock(enc), texts)
        assert enc.packed and (together - alone).abs().max() <= close and alone.std(0).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_negative_control_positions_alone_do_not_separate(kind):
    "A row with position ids under stock attention looks across texts, and says nothing"
    enc, texts = encoder(kind), view(kind=kind)
    row = enc.inputs(texts)
    base = stock(enc).base_model
    base.set_attn_implementation("sdpa")
    with torch.no_grad():
        across = base(**{n: v for n, v in row.items() if n != "row"}).last_hidden_state[0, row["row"].first]
        within = enc.body.model.base_model(**row).last_hidden_state[:, 0]
    assert (across - within).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_crosses(kind):
    "A text's vector depends on its own tokens only: the gradient is zero at every other token, and at none of its own"
    enc, texts = encoder(kind), view(kind=kind)
    words = []
    enc.body.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: words.append(output) or output.retain_grad()
    )
    inputs = enc.inputs(texts)
    for i in (0, 2, 8, 9):
        words.clear()
        enc.body(**inputs)[i].pow(2).sum().backward()
        own = torch.zeros(sum(LENGTHS), dtype=torch.bool)
        own[inputs["row"].first[i] :][: LENGTHS[i]] = True
        reached = words[0].grad[0].abs().sum(-1)
        assert (reached[~own] == 0).all() and (reached[own] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_text_changes_no_other(kind):
    enc, texts = encoder(kind, double=False), view(kind=kind)
    other = {n: v.clone() if torch.is_tensor(v) else v for n, v in texts.items()}
    other["input_ids"][7:10] = 5  # the second text
    with torch.no_grad():
        a, b = enc([texts])[0], enc([other])[0]
    same = (a == b).all(1)
    assert not same[1] and same[[0, *range(2, len(LENGTHS))]].all()


@pytest.mark.parametrize("most", [1, 8, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_padded_way(kind, most, monkeypatch):
    with_groups(monkeypatch, most)
    enc, views, found = encoder(kind), [view(kind=kind), view((5, 11, 6), kind, seed=1)], {}
    assert enc.packed
    for enc.packed in (True, False):
        enc.zero_grad()
        sum(e.sin().sum() for e in enc(views)).backward()
        found[enc.packed] = {n: p.grad.clone() for n, p in enc.named_parameters() if p.grad is not None}
    assert toy.gap(found[True], found[False]) <= max(EXACT[kind], 1e-11) and len(found[True]) > 12


def test_views_keep_their_order():
    enc = encoder()
    views = [view((9, 3)), view((4, 8, 3), seed=1)]
    with torch.no_grad():
        found, alone = enc(views), [enc([v])[0] for v in views]
    assert [len(e) for e in found] == [2, 3] and all((a - b).abs().max() < 1e-12 for a, b in zip(found, alone))


def test_a_copy_reads_rows_too():
    "f_t may start as a copy of f_m: the copy's hook and attention are its own"
    enc, texts = encoder(), view()
    twin = deepcopy(enc)
    with torch.no_grad():
        before = enc([texts])[0]
        for p in enc.parameters():
            p.mul_(2)
        assert torch.equal(twin([texts])[0], before) and not torch.equal(enc([texts])[0], before)


# ------------------------------------------------------------------ the layout
@pytest.mark.parametrize("seed", range(20))
def test_a_row_holds_every_text_once(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, random.integers(1, 40))
    store = Tokens(np.arange(lengths.sum(), dtype=np.int32), None, np.cumsum([0, *lengths]), 0)
    rows = random.permutation(len(lengths))[: random.integers(1, len(lengths) + 1)]
    packed = packing.pack(
        cut(store, rows), start=2, most=int(random.integers(1, 40)), filler=int(random.integers(0, 5))
    )
    ids, place = packed["input_ids"][0].numpy(), packed["position_ids"][0].numpy()
    for row, first in zip(rows, packed["row"].first.tolist()):
        own = np.arange(store.starts[row], store.starts[row + 1])
        assert (ids[first : first + len(own)] == own).all() and (
            place[first : first + len(own)] == 2 + np.arange(len(own))
        ).all()
    sizes = [g.texts * g.longest if g.where is None else len(g.where) for g in packed["row"].groups]
    assert (
        sum(sizes) == len(ids)
        and sum(g.texts for g in packed["row"].groups) == len(rows) + len(ids) - lengths[rows].sum()
    )


# ------------------------------------------------------------------ the work
def entering(enc, texts):
    "Count the tokens that enter each linear layer in one forward"
    seen, handles = {}, []
    for name, layer in enc.named_modules():
        if isinstance(layer, nn.Linear):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda layer, args, name=name: seen.__setitem__(name, args[0].shape[:-1].numel())
                )
            )
    with torch.no_grad():
        enc([texts])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_no_padding_token_enters_a_linear_layer(kind):
    "Every layer sees the real tokens; behind the last attention only first tokens are left"
    enc, texts = encoder(kind, double=False), view(kind=kind)
    seen = entering(enc, texts)
    assert set(seen.values()) == {sum(LENGTHS), len(LENGTHS)}
    few = {name for name, n in seen.items() if n == len(LENGTHS)}
    assert all("layer.1." in name or ".encoder." not in name for name in few) and not any(
        ".attention." in name or ".layers." in name for name in few
    )
    assert kind == "modernbert" or {name.split(".")[-2] for name in few if "layer.1." in name} == {
        "intermediate",
        "output",
    }
    enc.packed = False
    assert (
        len(LENGTHS) * 40 in entering(enc, texts).values()
    )  # the padded way: 33 tokens and as many as round them up to 40


def test_bfloat16_on_a_cpu_adds_a_counted_filler():
    enc, texts = encoder(double=False), view((33,) * 33)
    with torch.autocast("cpu", torch.bfloat16):
        seen, added = entering(enc, texts), packing.filler(33 * 33, torch.device("cpu"))
    assert 0 < added < 33 * 33 / 16 and set(seen.values()) == {33 * 33 + added, 33}
    assert packing.filler(33 * 33, torch.device("cpu")) == 0 == packing.filler(33 * 33, torch.device("cuda"))


def test_the_filler_says_nothing(monkeypatch):
    "Not in the vectors, and not in the gradients"
    enc, found = encoder(), {}
    for added in (0, 50):
        monkeypatch.setattr("macular.model.modules.filler", lambda tokens, device, added=added: added)
        enc.zero_grad()
        e = enc([view()])[0]
        e.sin().sum().backward()
        found[added] = {"e": e.detach()} | {n: p.grad.clone() for n, p in enc.named_parameters() if p.grad is not None}
    assert toy.gap(found[0], found[50]) < 1e-12


def test_dropout_falls_on_attention(monkeypatch):
    "In training the probabilities are thinned out as the model says, in evaluation they are not"
    seen, real = [], packing.F.scaled_dot_product_attention
    monkeypatch.setattr(
        packing.F,
        "scaled_dot_product_attention",
        lambda *args, **options: seen.append(options["dropout_p"]) or real(*args, **options),
    )
    enc, texts = encoder(dropout=0.3), view()
    for module in enc.modules():
        if isinstance(module, nn.Dropout) and module not in [
            layer.attention.self.dropout for layer in enc.body.model.bert.encoder.layer
        ]:
            module.p = 0.0
    with torch.no_grad():
        still, moving = [enc.eval()([texts])[0] for _ in range(2)], [enc.train()([texts])[0] for _ in range(2)]
    assert torch.equal(*still) and (moving[0] - moving[1]).abs().max() > 1e-3
    assert seen[: len(seen) // 2] == [0.0] * (len(seen) // 2) and set(seen[len(seen) // 2 :]) == {0.3}


GROW = """
import os, resource
import numpy as np, torch
from transformers import BertConfig, BertModel
from macular.model import modules
from macular.model.modules import Encoder, _FirstToken
torch.set_num_threads(1)

def grow(precision, filler):
    model = BertModel(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    enc, optimizer, peaks = Encoder(_FirstToken(model), 32, model.config).train(), torch.optim.AdamW(model.parameters(), fused=True), []
    if filler == "without": modules.filler = lambda tokens, device: 0
    for step in range(200):
        lengths = np.full(32, 20) + (np.arange(32) < step % 32) + step // 32  # 640, 641, ... tokens
        view = {"input_ids": torch.full((lengths.sum(),), 7), "lengths": lengths}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"): loss = enc([view])[0].float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print("grown", precision, filler, peaks[-1] - peaks[20], flush=True)

for case in ("fp32", "with"), ("bf16", "with"), ("bf16", "without"):  # each in a process of its own
    if pid := os.fork(): os.waitpid(pid, 0)
    else:
        grow(*case)
        os._exit(0)
"""  # noqa: E501


@cache
def grown():
    """(precision, filler) -> megabytes by which 180 steps of different numbers of tokens raise the peak, and how many
    kernels were made for them, as oneDNN itself tells"""
    done = subprocess.run(
        [sys.executable, "-c", GROW],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"ONEDNN_VERBOSE": "profile_create"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, kernels = {}, 0
    for line in done.stdout.splitlines():
        kernels += "create:cache_miss" in line
        if line.startswith("grown "):
            _, precision, filler, megabytes = line.split()
            found[precision, filler], kernels = (float(megabytes), kernels), 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_does_not_grow_with_the_number_of_lengths(precision):
    assert grown()[precision, "with"][0] < 40


@pytest.mark.skipif(
    not getattr(torch.cpu, "_is_avx512_bf16_supported", bool)(), reason="this processor has no bfloat16 of its own"
)
@pytest.mark.slow
def test_negative_control_without_filler_memory_grows_more():
    """A kernel for every number of tokens, each kept; how much memory that is depends on the machine, and on what
    else it does"""
    (without, kernels), (memory, few) = grown()["bf16", "without"], grown()["bf16", "with"]
    assert kernels > 400 > 100 > few > 0 and (without == 0 or without > memory)


# ------------------------------------------------------------------ who is packed
def test_what_is_not_known_is_padded(tmp_path):
    "DeBERTa-v2, and a ModernBERT whose head takes the mean; a row of Macular says so"
    assert not encoder("deberta").packed
    shape = dict(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        classifier_pooling="mean",
    )
    ModernBertModel(ModernBertConfig(**shape)).save_pretrained(tmp_path)
    mean = load_encoder(tmp_path, 0).eval()
    texts = view(kind="modernbert")
    texts["input_ids"] %= 50
    with torch.no_grad():
        assert not mean.packed and (mean([texts])[0] - one_by_one(stock(mean), texts)).abs().max() < 1e-5
    said = {
        kind: toy.made(methods["finetune"], toy.material("toy3", kind=kind), toy.recipe()).notes for kind in toy.KINDS
    }
    assert [kind for kind, notes in said.items() if any("padded" in note for note in notes)] == ["deberta"]


@pytest.mark.parametrize("e", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_readings_of_e_are_packed(kind, e):
    enc = load_encoder(toy.backbone(kind), 0, e=e).eval().double()
    texts, more = view(kind=kind), view((4, 9), kind=kind, seed=1)
    with torch.no_grad():
        row, others = enc([texts, more])
        enc.packed = False
        assert (row - enc([texts])[0]).abs().max() < EXACT[kind] and (others - enc([more])[0]).abs().max() < EXACT[kind]


@pytest.mark.parametrize("kind", (*KINDS, "deberta"))
def test_the_mean_is_over_a_texts_own_tokens(kind):
    enc = toy.redraw(load_encoder(toy.backbone(kind), 0, e="mean"), "packing", kind).eval().double()
    texts = view(kind=kind)
    names = [name for name in texts if name != "lengths"]
    alone = []
    with torch.no_grad():
        for part in zip(*(texts[name].split(texts["lengths"].tolist()) for name in names)):
            given = dict(zip(names, (p[None] for p in part)))
            alone.append(enc.body.model(**given, attention_mask=torch.ones_like(part[0])[None]).last_hidden_state[0])
        found = enc([texts])[0]
    assert (found - torch.stack([hidden.mean(0) for hidden in alone])).abs().max() <= max(EXACT.get(kind, 0), 1e-5)
    assert found.std(0).max() > 0.1 and found.dtype == torch.float64


def test_the_mean_is_over_no_filler():
    "The one-token texts that bfloat16 appends on a CPU belong to no text"
    enc, texts = load_encoder(toy.backbone("bert"), 0, e="mean").eval(), view()
    with torch.no_grad():
        plain = enc([texts])[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert packing.filler(len(texts["input_ids"]), texts["input_ids"].device)
            found = enc([texts])[0]
    assert found.dtype == torch.float32 and (found - plain).abs().max() < 0.1 < plain.std(0).max()


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    "The stock class loads it, with stock attention"
    enc = encoder(double=False)
    enc.body.model.save_pretrained(tmp_path)
    assert "macular" not in (tmp_path / "config.json").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# ------------------------------------------------------------------ a training
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("e", ["auto", "mean"])
@pytest.mark.parametrize("name", ["macular_nots", "macular"])
def test_a_training_ends_where_the_padded_one_does(name, e):
    states = []
    for packed in (True, False):
        row, numbers = methods[name].derive("other", readings=Readings(e=e)), toy.recipe(rounds=2)
        stuff = toy.for_row(row)
        built = toy.made(row, stuff, numbers)
        for enc in [built.net.encoder, *([stuff.shared] if row.shared else [])]:
            enc.packed = packed
        toy.train(built, numbers)
        states.append(toy.state(built.net))
    assert toy.gap(*states) < 1e-10


def test_batches_drawn_independently_are_a_setting():
    row = methods["finetune"]
    rows = {
        pool: [
            b.tolist()
            for b in toy.made(row, toy.for_row(row, n=40), replace(toy.recipe(), pool=pool)).phases[0].data(0).rows
        ]
        for pool in (1, 16)
    }
    assert rows[1] != rows[16] and sorted(sum(rows[1], [])) == sorted(sum(rows[16], [])) == list(range(40))
