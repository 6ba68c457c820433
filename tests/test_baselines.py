"""The rivals of the paper's tables: what each changes, against a second, naive computation from the same numbers."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from test_reference import Adam, Alone, ce, encoded, lengths, one_hot
from torch import nn

from macular.data.mini_world import Mini, neighbours
from macular.exceptions import DataError, ParameterError
from macular.model.baselines import SyntaxEncoder, _distances, cloze, reverse
from macular.model.losses import Objective, kl_s, terms
from macular.model.modules import load_encoder
from macular.text.batches import cut, order
from macular.text.code_switch import Place
from macular.text.encode import ByCloze, ChunkEncoder, TextEncoder, TextSettings, Views, choose_encoder, verbalise
from macular.text.syntax import ByTree, Tree, Treebank, _attach, _origins, read_conllu, tree_from_heads
from macular.train.build import build, build_net
from macular.train.methods import methods

CLOSE = 1e-10
THREE = toy.TASKS["toy3"]


def texts(**changes):
    return TextSettings(toy.tokenizer(), toy.LEXICON, seed=3, neighbours=toy.NEIGHBOURS, **changes)


# ------------------------------------------------------------------ RS-DA
def copies(dataset, row, seed, round):
    def one(item, field, text):
        return row.synonyms([text], [item], toy.NEIGHBOURS, Place(seed, THREE.name, field, round))[0].text

    return [{**r, "text_a": one(r["id"], 0, r["text_a"]), "text_b": one(r["id"], 1, r["text_b"])} for r in dataset]


def naive(name, views, loss, rounds=4):
    """One encoder, one head, one step a batch; the states after the library's training and after this one, and before
    both"""
    row, stuff, numbers = methods[name], toy.for_row(methods[name], n=7), toy.recipe(rounds=rounds)
    built = toy.made(row, stuff, numbers)
    second, before = deepcopy(built.net).eval().requires_grad_(True), toy.state(built.net)
    toy.train(built, numbers)
    f, W, data = Alone(second.encoder), second.heads[0], stuff.rows["toy3"]
    adam, step, total = Adam(f, W), 0, rounds * -(-len(data) // numbers.batch_size)
    for round in range(rounds):
        read = [encoded(v, stuff.tokenizer) for v in views(row, data, numbers.seed, round)]
        for batch in order(lengths(*read), numbers.batch_size, numbers.seed, "net", round):
            total_loss = sum(loss(*(W(f(v[j])) for v in read), one_hot(data[int(j)]["label"], 3)) for j in batch)
            adam.step(total_loss.sum() / len(batch), numbers.learning_rate * (1 - step / total))
            step += 1
    return toy.state(built.net), toy.state(second), before


def test_rs_da_is_fine_tuning_on_copies():
    "Four rounds of three copies: the fourth is the first one again"
    library, second, before = naive("rs_da", lambda row, data, seed, round: [copies(data, row, seed, round % 3)], ce)
    assert toy.gap(library, second) <= CLOSE < 1e-3 < toy.gap(library, before)


def test_rs_da_negative_control():
    library, second, _ = naive("rs_da", lambda row, data, seed, round: [copies(data, row, seed, round % 2)], ce)
    assert toy.gap(library, second) > 1e4 * CLOSE


def test_copies_by_table_are_copies_by_text():
    dataset, text = toy.rows("toy3", 60), texts(synonyms=methods["rs_da"].synonyms)
    assert type(choose_encoder(THREE, dataset, text, "_copy")) is ChunkEncoder
    a, b = TextEncoder(THREE, dataset, text, "_copy"), ChunkEncoder(THREE, dataset, text, "_copy")
    seen = []
    for round in range(4):
        (one, counts), (other, tallied) = a.switched(round), b.switched(round)
        assert np.array_equal(one.ids, other.ids) and counts == tallied and counts["changed"] > 20
        seen.append(one.ids.tolist())
    assert seen[0] == seen[3] and seen[0] != seen[1] != seen[2]


def test_without_near_synonyms_it_is_refused():
    with pytest.raises(DataError, match="two columns"):
        Views(
            [THREE], {"toy3": toy.rows("toy3", 4)}, replace(texts(synonyms=methods["rs_da"].synonyms), neighbours={})
        ).items(0, ("_copy",))


def test_the_mini_world_has_near_synonyms():
    words = neighbours()["en"]
    assert len(words) > 100 and all(w not in found and set(words[x]) & {w} for w, found in words.items() for x in found)


# ------------------------------------------------------------------ xTune
def test_xtune_is_two_views_and_a_consistency():
    "KL towards each of two predictions held fixed, divided by items and classes; a new draw every round"
    from test_reference import code_switched, symmetric

    def views(row, data, seed, round):
        return [data, code_switched(data, THREE, row.augment, seed, round)]

    library, second, before = naive("xtune", views, lambda x, a, y: ce(x, y) + 5.0 * symmetric(a, x) / 3, rounds=2)
    assert toy.gap(library, second) <= CLOSE < 1e-3 < toy.gap(library, before)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_its_mean_is_over_classes_too(k):
    p, q = torch.randn(2, 5, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.isclose(terms["xtune_kl"].loss(p, q) * k, kl_s(p, q))


# ------------------------------------------------------------------ multi-task, then fine-tuning
def test_fine_tuning_begins_where_multi_task_training_ended():
    row, numbers = methods["mtl_ft"], toy.recipe()
    stuff = toy.material("toy3", shared=True)
    net = build_net(row, stuff, numbers)
    assert (
        toy.same(toy.state(net.encoder), toy.state(stuff.shared))
        and net.encoder is not stuff.shared
        and not hasattr(net, "shared")
    )
    assert all(p.requires_grad for p in net.parameters()) and not net.encoder.made
    before = toy.state(stuff.shared)
    toy.train(build(row, stuff, numbers), numbers)
    assert toy.same(before, toy.state(stuff.shared))  # another training may begin there, too
    assert not row.frozen and methods["macular"].frozen and not methods["mtl"].frozen


# ------------------------------------------------------------------ gradient reversal
def test_reversal_is_the_identity_forward_and_its_negative_backward():
    e = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    w = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    assert torch.equal(reverse(e), e)
    (reverse(e) * w).sum().backward()
    assert torch.equal(e.grad, -w)


@pytest.mark.parametrize("name", ["macular_nots_grl", "macular_grl"])
def test_one_step_of_both(name):
    "Written out: the discriminator descends its loss, the net ascends it, in the same step; nothing else has a phase"
    row, numbers = methods[name], toy.recipe(batch_size=64)
    built = toy.made(row, toy.for_row(row), numbers)
    assert [p.name for p in built.phases] == ["net"]
    net, batch = built.net, built.phases[0].data(0)[0]
    D, loss = net.discriminator, "task_grl" if "task_grl" in row.terms else "lang_grl"
    built.phases[0].loss(batch)[0].backward()
    found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    outputs = net(
        batch, ("e", "e_aug", "logits", "logits_aug") + (("logits_near", "logits_near_aug") if row.frozen else ())
    )
    d = {"d": D(outputs["e"]), "d_aug": D(outputs["e_aug"])}
    judged = sum(
        -(
            p.log_softmax(-1)[torch.arange(len(p)), batch["task"] if loss == "task_grl" else torch.full((len(p),), i)]
        ).mean()
        for i, p in enumerate(d.values())
    )
    others = {n: w for n, w in row.terms.items() if n != loss}
    rest, _ = Objective(others, lambda b, names: outputs)(batch)
    (rest - row.terms[loss] * judged).backward(retain_graph=True)
    wanted = {
        n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None and not n.startswith("discriminator")
    }
    net.zero_grad()
    (row.terms[loss] * judged).backward()
    wanted |= {n: p.grad.clone() for n, p in net.named_parameters() if n.startswith("discriminator")}
    assert found.keys() == wanted.keys() and max((found[n] - wanted[n]).abs().max() for n in found) < 1e-12
    assert any(g.abs().max() > 1e-3 for n, g in found.items() if n.startswith("discriminator"))


# ------------------------------------------------------------------ Prompt
def test_a_cloze_is_the_text_with_a_gap():
    dataset, tok = toy.rows("toy3", 40), toy.tokenizer()
    found = ByCloze(THREE, dataset, TextSettings(tok, max_length=200)).tokens()
    for i, row in enumerate(dataset):
        assert (
            found.ids[found.starts[i] : found.starts[i + 1]].tolist()
            == tok(f"{row['text_a']} [MASK] {row['text_b']}")["input_ids"]
        )  # the toy world has neither ? nor ,
    assert (found.ids[found.starts[:-1] + found.at] == tok.mask_token_id).all() and not found.types.any()


@pytest.mark.parametrize("most", [8, 9, 12, 20])
def test_only_the_texts_are_cut(most):
    dataset, tok = toy.rows("toy3", 40), toy.tokenizer()
    found = ByCloze(THREE, dataset, TextSettings(tok, max_length=most)).tokens()
    assert found.lengths.max() == most and (found.ids == tok.mask_token_id).sum() == len(dataset)
    whole = tok(
        dataset["text_a"][:], dataset["text_b"][:], truncation="longest_first", max_length=most, add_special_tokens=True
    )["input_ids"]
    for i, pair in enumerate(
        whole
    ):  # one special token more than a pair's three: none, as the gap takes the second [SEP]'s place
        ours = found.ids[found.starts[i] : found.starts[i + 1]].tolist()
        assert [t for t in ours if t > 3 and t != tok.mask_token_id] == [t for t in pair if t > 3]


@pytest.mark.parametrize("kind", ["bert", "xlmr", "modernbert", "deberta"])
def test_the_gap_is_read_in_a_row_and_in_a_padded_batch(kind):
    tok = toy.tokenizer(kind)
    net = cloze(toy.backbone(kind), THREE, tok, 0).eval()
    tokens = ByCloze(THREE, toy.rows("toy3", 9), TextSettings(tok, max_length=20)).tokens()
    batch, found = {"x": cut(tokens, np.array([4, 0, 8, 2]))}, {}
    for packed in {net.encoder.packed, False}:
        net.encoder.packed = packed
        with torch.no_grad():
            found[packed] = net(batch, ("logits", "e"))
    alone = torch.cat([net({"x": cut(tokens, np.array([i]))}, ("logits",))["logits"] for i in (4, 0, 8, 2)])
    for out in found.values():
        assert torch.allclose(out["logits"], alone, atol=1e-5)
    assert alone.std(0).min() > 1e-4 and net.heads[0].weight.shape == (3, 16)


def test_the_head_begins_as_the_pretrained_one():
    from transformers import BertConfig, BertForMaskedLM

    tok = toy.tokenizer()
    model = toy.redraw(
        BertForMaskedLM(
            BertConfig(
                vocab_size=len(tok), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
            )
        ),
        "mlm",
    ).eval()
    folder = toy.FOLDER.name + "/mlm"
    model.save_pretrained(folder), tok.save_pretrained(folder)
    net, dataset = cloze(folder, THREE, tok, 0).eval(), toy.rows("toy3", 8)
    tokens = ByCloze(THREE, dataset, TextSettings(tok, max_length=40)).tokens()
    with torch.no_grad():
        ours = net({"x": cut(tokens, np.arange(8))}, ("logits",))["logits"]
        for i in range(8):
            ids = torch.from_numpy(tokens.ids[tokens.starts[i] : tokens.starts[i + 1]].astype(int))[None]
            assert torch.allclose(ours[i], model(ids).logits[0, tokens.at[i], verbalise(THREE, tok)], atol=1e-4)
    assert not net.encoder.made


@pytest.mark.parametrize(
    "words,said", [(("good", "small", "good"), "different words"), (("good",), "3 different words")]
)
def test_words_are_one_a_label(words, said):
    with pytest.raises(ParameterError, match=said):
        replace(THREE, words=words)


def test_words_the_vocabulary_lacks_are_refused():
    with pytest.raises(ParameterError, match="has no 'ß'"):
        verbalise(replace(THREE, words=("ß", "good", "small")), toy.tokenizer())
    with pytest.raises(ParameterError, match="different tokens"):
        verbalise(replace(THREE, words=("good", "Good", "small")), toy.tokenizer())
    assert (
        len(set(verbalise(replace(THREE, words=()), _lettered()))) == 3
    )  # a task that names none is asked for its labels


def _lettered():
    words = deepcopy(toy.tokenizer())
    words.add_tokens(["yes", "maybe", "no"])
    return words


# ------------------------------------------------------------------ trees
def steps_between(heads):
    "Breadth first, from every token"
    n = len(heads)
    near = [{int(heads[i])} | {j for j in range(n) if heads[j] == i} for i in range(n)]
    found = np.full((n, n), -1)
    for start in range(n):
        now, d = {start}, 0
        while now:
            for i in now:
                found[start, i] = d
            now, d = {j for i in now for j in near[i] if found[start, j] < 0}, d + 1
    return found


@pytest.mark.parametrize("seed", range(8))
def test_distances_are_those_of_a_walk(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 30))
    heads, turn = (
        np.array([0, *(draw.integers(0, i) for i in range(1, n))]),
        np.concatenate([[0], 1 + draw.permutation(n - 1)]),
    )
    placed = np.empty(n, int)
    placed[turn] = turn[heads]  # the same tree, its tokens in another order
    apart, depth = _distances(torch.from_numpy(placed)[None])
    assert np.array_equal(apart[0].numpy(), steps_between(placed)) and np.array_equal(
        depth[0].numpy(), steps_between(placed)[0]
    )


def test_tokens_hang_on_their_words():
    tree = Tree(np.array([0, 4, 8, 12]), np.array([1, -1, 3, 1]), np.array([0, 1, 2, 3]))
    assert _attach(np.array([0, 0, 1, 2, 3, 3]), tree, 5).tolist() == [[7, 0], [5, 0], [0, 1], [9, 2], [7, 3], [9, 3]]
    assert _attach(np.array([0, 2, 3]), tree, 1).tolist() == [
        [0, 0],
        [3, 2],
        [0, 3],
    ]  # the root has no token: what hangs on it rises
    assert _attach(np.array([0, 1, 2]), tree, 1)[:, 0].tolist() == [2, 0, 2]  # the third word's head was cut off


def test_a_pair_is_one_tree_whatever_is_cut():
    dataset, text = toy.rows("toy3", 30), texts()
    for most in (8, 12, 40):
        tokens = ByTree(THREE, dataset, replace(text, max_length=most), trees=toy._Chains()).tokens()
        plain = TextEncoder(THREE, dataset, replace(text, max_length=most)).tokens()
        assert np.array_equal(tokens.ids, plain.ids) and len(tokens.tree) == len(tokens.ids)
        for i in range(len(dataset)):
            head = tokens.tree[tokens.starts[i] : tokens.starts[i + 1], 0]
            assert head[0] == 0 and (steps_between(head)[0] >= 0).all()


def test_switched_text_keeps_its_tree():
    row = methods["macular_syn"]
    dataset, text = toy.rows("toy3", 30), texts(switch=row.augment)
    one = ByTree(THREE, dataset, text, trees=toy._Chains())
    (tokens, counts), plain = one.switched(0), TextEncoder(THREE, dataset, text).switched(0)
    assert np.array_equal(tokens.ids, plain[0].ids) and counts == plain[1] and counts["changed"] > 20
    for field in one.exchanged(0):
        for s in field:
            where = _origins(s)
            assert len(where) == len(s.text) + 1 and (np.diff(where) >= 0).all()
            kept = [
                (c, s.original[w])
                for c, w, p in zip(s.text, where, [p for p in s.pieces for _ in p.after])
                if p.lang is None
            ]
            assert all(a == b for a, b in kept)


CONLLU = (
    "# text = Du vin\n1-2\tDu\t_\t_\t_\t_\t_\t_\t_\t_\n1\tDe\tde\tADP\t_\t_\t3\tcase\t_\t_\n"
    "2\tle\tle\tDET\t_\t_\t3\tdet\t_\t_\n3\tvin\tvin\tNOUN\t_\t_\t0\troot\t_\t_\n3.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n"
)


def test_words_written_as_one(tmp_path):
    "A range's form is what is written; its second word has no letters of its own"
    (tmp_path / "a.conllu").write_text(CONLLU)
    tree = Treebank(read_conllu(tmp_path / "a.conllu"))["Du  vin"]
    assert tree.starts.tolist() == [0, 4, 4] and tree.heads.tolist() == [2, 2, -1] and tree.pos.tolist() == [2, 6, 8]


@pytest.mark.parametrize(
    "before,after,said",
    [
        ("\t3\tcase", "\t9\tcase", "no head word 9"),
        ("\t3\tcase", "\t_\tcase", "the head '_' is no number"),
        ("1\tDe\tde\tADP\t_\t_\t3\tcase\t_\t_", "1 De de", "1 columns"),
        ("\t0\troot", "\t1\troot", "contain a cycle"),
    ],
)
def test_bad_trees_are_refused(tmp_path, before, after, said):
    (tmp_path / "bad.conllu").write_text(CONLLU.replace(before, after))
    with pytest.raises(DataError, match=f"bad.conllu.*{said}"):
        read_conllu(tmp_path / "bad.conllu")


def test_a_missing_tree_is_said():
    with pytest.raises(DataError, match="no dependency tree for"):
        ByTree(THREE, toy.rows("toy3", 3), texts(), trees={}).tokens()
    with pytest.raises(DataError, match="2 heads for 3 words"):
        tree_from_heads("a b c", [1, -1])


# ------------------------------------------------------------------ Syn.
def naive_syntax(encoder, ids, types, heads, pos):
    """One text: the graph attention token by token, then the stock model with keys and values of the first head
    shifted by hand; (e, structural loss)"""
    n, apart = len(ids), steps_between(heads)
    model = encoder.body.model
    states = [encoder.enter(model.get_input_embeddings().weight[i]) + encoder.pos.weight[p] for i, p in zip(ids, pos)]
    for layer in encoder.layers:
        h = [layer.map(s).view(layer.heads, -1) for s in states]
        new = []
        for i in range(n):
            near = [j for j in range(n) if apart[i, j] <= 4]
            seen = []
            for head in range(layer.heads):
                scores = torch.stack(
                    [
                        nn.functional.leaky_relu(
                            layer.score[0, head] @ h[i][head] + layer.score[1, head] @ h[j][head], 0.2
                        )
                        for j in near
                    ]
                )
                seen.append(sum(w * h[j][head] for w, j in zip(scores.softmax(0), near)))
            new.append(layer.norm(states[i] + torch.cat(seen)))
        states = new
    said, kept, hooks = torch.stack(states), [], []
    for layer, fuse in zip(model.base_model.encoder.layer, encoder.fuse):
        for projection, shift in zip((layer.attention.self.key, layer.attention.self.value), fuse(said).chunk(2, -1)):
            wide = torch.cat([shift, shift.new_zeros(n, projection.out_features - shift.shape[1])], 1)[None]
            hooks.append(projection.register_forward_hook(lambda m, a, out, wide=wide: out + wide))
    hooks.append(
        model.base_model.encoder.layer[-1].register_forward_hook(
            lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    )
    e = encoder.body(input_ids=ids[None], **({} if types is None else {"token_type_ids": types[None]}))[0]
    for hook in hooks:
        hook.remove()
    last, (B, C) = kept[0][0], encoder.probe
    pairs = sum(abs(((last[i] - last[j]) @ B).square().sum() - apart[i, j]) for i in range(n) for j in range(n)) / n**2
    return e, pairs + sum(abs((last[i] @ C).square().sum() - apart[0, i]) for i in range(n)) / n


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_syntax_is_what_is_written_of_it(kind):
    plain = load_encoder(toy.backbone(kind), 0)
    stock = deepcopy(plain).double().eval()
    stock.packed = False
    encoder = toy.redraw(SyntaxEncoder(plain, 0), "syntax").double().eval()
    stock.body.load_state_dict(encoder.body.state_dict())
    naive = deepcopy(encoder)
    for m in naive.body.modules():
        m._forward_hooks.clear()
    tokens = ByTree(
        THREE, toy.rows("toy3", 6), TextSettings(toy.tokenizer(kind), max_length=20), trees=toy._Chains()
    ).tokens()
    views = [cut(tokens, np.array([3, 0])), cut(tokens, np.array([5, 1, 2]))]
    with torch.no_grad():
        e, loss = encoder(views), encoder.trees
        without = stock(views)
        for v, view in enumerate(views):
            ends = np.cumsum(view["lengths"])
            for i, (a, b) in enumerate(zip(ends - view["lengths"], ends)):
                types = view["token_type_ids"][a:b] if "token_type_ids" in view else None
                wanted, structure = naive_syntax(
                    naive, view["input_ids"][a:b], types, view["tree"][a:b, 0].numpy(), view["tree"][a:b, 1]
                )
                assert torch.allclose(e[v][i], wanted, atol=1e-9) and torch.isclose(loss[v][i], structure, atol=1e-9)
                assert not torch.allclose(e[v][i], without[v][i], atol=1e-3)


def test_a_copied_syntax_encoder_is_its_own():
    "Hooks belong to the copy, not to what was copied"
    encoder = SyntaxEncoder(load_encoder(toy.backbone(), 0), 0).eval()
    tokens = ByTree(
        THREE, toy.rows("toy3", 4), TextSettings(toy.tokenizer(), max_length=20), trees=toy._Chains()
    ).tokens()
    view = cut(tokens, np.arange(4))
    with torch.no_grad():
        before = encoder([view])[0]
    copy = toy.redraw(deepcopy(encoder), "other")
    with torch.no_grad():
        other, after = copy([view])[0], encoder([view])[0]
    assert torch.equal(before, after) and not torch.allclose(before, other, atol=1e-2)


@pytest.mark.parametrize("kind", ["deberta", "modernbert"])
def test_other_backbones_are_refused(kind):
    with pytest.raises(ParameterError, match="bert and xlm-roberta"):
        SyntaxEncoder(load_encoder(toy.backbone(kind), 0), 0)


def test_all_parts_of_syntax_learn():
    row, numbers = methods["syn"], toy.recipe()
    built = toy.made(row, toy.for_row(row), numbers, double=False)
    before = toy.state(built.net)
    toy.train(built, numbers)
    still = [n for n, p in toy.state(built.net).items() if torch.equal(p, before[n])]
    assert not [n for n in still if any(part in n for part in (".enter", ".layers.", ".fuse", ".probe"))], still
    assert {n.split(".")[0] for n in built.phases[0].loss.outputs} == {"logits", "tree"}


# ------------------------------------------------------------------ jobs
JOB = dict(task="pawsx", preset="mini", max_train=48, rounds=1, langs="de")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    from macular.train.config import check
    from macular.train.run import run

    out = str(tmp_path_factory.mktemp("runs"))

    def do(**changes):
        events = []
        result = run(
            check(JOB | {"out": out} | changes),
            lambda event, facts: events.append((event, facts)),
            Mini(train=48, dev=40, test=60),
        )
        return (
            result,
            [f["method"].name for e, f in events if e == "start"],
            [f["method"].name for e, f in events if e == "found"],
        )

    return do


def test_twice_is_the_mean_of_two_runs_and_trains_nothing_new(done):
    (one, *_), (other, *_) = done(method="finetune", seed=0), done(method="finetune", seed=1000)
    both, trained, found = done(method="finetune_x2", seed=0)
    assert not trained and len(found) == 2 and len(both.values["trainings"]) == 2
    names = ["p_different", "p_paraphrase"]
    mean = (one.predictions[names] + other.predictions[names]) / 2
    assert np.allclose(both.predictions[names], mean, atol=1e-7)
    assert (
        both.predictions["prediction"]
        == np.where(mean["p_paraphrase"] > mean["p_different"], "paraphrase", "different")
    ).all()
    assert both.folder != one.folder and both.values["config"]["method"] == "finetune_x2"


def test_multi_task_training_is_shared(done):
    _, trained, _ = done(method="mtl_ft", stage1="pawsx,xnli")
    _, again, found = done(method="mtl_ft", stage1="pawsx,xnli", learning_rate=1e-4)
    assert trained == ["mtl", "mtl_ft"] and again == ["mtl", "mtl_ft"] and not found  # the rate is stage 1's, too
    _, again, found = done(method="mtl_ft", stage1="pawsx,xnli", langs="fr")
    assert not again and found == ["mtl", "mtl_ft"]


def test_languages_without_trees_are_left_out_and_said(done):
    result, *_ = done(method="syn", task="xnli", langs="de,sw,th", max_train=24)
    assert set(result.accuracy["xnli"]) == {"en", "de"}
    assert any("no dependency trees in sw, th" in note for note in result.values["notes"])


def test_trees_and_synonyms_of_ones_own(done, tmp_path):
    (tmp_path / "near.txt").write_text("gives\tsells\nsees\tmeets\n")
    mine, trained, _ = done(method="rs_da", synonyms=str(tmp_path / "near.txt"))
    theirs, again, _ = done(method="rs_da")
    assert (
        trained == again == ["rs_da"]
        and mine.values["trainings"]["rs_da"]["key"] != theirs.values["trainings"]["rs_da"]["key"]
    )
    assert any(o["file"] == "near.txt" for o in mine.values["origins"]) and str(tmp_path) not in str(mine.values)
    with pytest.raises(DataError, match="no pawsx-train-en.conllu in"):
        done(method="syn", tree_dir=str(tmp_path))
    with pytest.raises(DataError, match="there is no .*nowhere.txt"):
        done(method="rs_da", synonyms=str(tmp_path / "nowhere.txt"))
