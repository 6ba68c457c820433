"""The phases of a training: which net learns, how often each text is encoded, and errors for missing inputs."""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import toy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from macular.exceptions import DataError, MacularError, SetupError
from macular.model.losses import Objective
from macular.text.code_switch import CodeSwitch
from macular.train.methods import Readings, methods
from macular.train.trainer import Loop, Phase, fit

ROWS = ("finetune", "cosda_ml", "macular_nots", "macular")
ADVERSARIAL = ("macular_nots", "macular", "macular_wo_consistency")


# ------------------------------------------------------------------ what is watched
def of(module):
    return list(module.parameters())


class Watch:
    """Every text that goes through an encoder, as its tokens, with the mode and the gradient it went with, and every
    forward of its body"""

    def __init__(self, encoder):
        self.calls, self.texts, self.modes, self.tokens = 0, Counter(), set(), 0
        encoder.register_forward_pre_hook(self.see)
        encoder.body.register_forward_hook(self.count)
        first = next(m for m in encoder.body.modules() if isinstance(m, torch.nn.Linear))
        first.register_forward_pre_hook(self.reweight)

    def see(self, encoder, args):
        for view in args[0]:
            for ids in view["input_ids"].split(view["lengths"].tolist()):
                self.texts[tuple(ids.tolist())] += 1

    def count(self, body, args, output):
        self.calls += 1
        self.modes.add((body.training, output.requires_grad))

    def reweight(self, layer, args):
        self.tokens += args[0].shape[:-1].numel()

    def take(self):
        "Return the texts seen since the last call; only their tokens entered the linear layers"
        seen = self.calls, self.texts, self.modes
        assert self.tokens == sum(n * len(text) for text, n in self.texts.items())
        self.calls, self.texts, self.modes, self.tokens = 0, Counter(), set(), 0
        return seen


def texts_of(views, suffix, round=0):
    "The items of a view as tokens"
    tokens = views.items(round, (suffix,)).views[suffix]
    return Counter(tuple(tokens.ids[a:b].tolist()) for a, b in zip(tokens.starts, tokens.starts[1:]))


def times(counter, n):
    return Counter({k: n * v for k, v in counter.items()})


def lines_of(built, numbers, **options):
    history = []
    records = toy.train(built, numbers, on_step=history.append, **options)
    return history, records


# ------------------------------------------------------------------ who moves
@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_who_moves_in_which_phase(name):
    "Bit for bit, after every step; with dropout, so that a net in the wrong mode would show"
    row, numbers = methods[name], toy.recipe(rounds=2)
    built = toy.made(row, toy.for_row(row, dropout=0.1), numbers, double=False)
    net, D = built.net, built.phases[0].trains
    frozen = of(net.shared) if row.shared else []
    shared = toy.state(net.shared) if row.shared else {}
    before, modes, lines = [toy.state(net), toy.state(D)], [], []

    def look(line):
        after = [toy.state(net), toy.state(D)]
        moved = [not toy.same(a, b) for a, b in zip(before, after)]
        assert moved == ([False, True] if line["phase"] == "discriminator" else [True, False]), line
        assert not row.shared or toy.same(shared, toy.state(net.shared))
        before[:] = after
        modes.append((line["phase"], net.training, D.training, row.shared and net.shared.training))
        lines.append(line["phase"])

    def before_step(optimizer, *_):
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not own & {id(p) for p in frozen}
        for p in of(net) + of(D):
            assert (p.grad is None) == (id(p) not in own), "a gradient lies where nothing learns"

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        toy.train(built, numbers, on_step=look)
    finally:
        handle.remove()
    steps = [p.passes * p.steps for p in built.phases]
    assert lines == 2 * (steps[0] * ["discriminator"] + steps[1] * ["net"])
    assert {m[1:3] for m in modes if m[0] == "net"} == {(True, False)} and {m[1:3] for m in modes if m[0] != "net"} == {
        (False, True)
    }
    assert not any(m[3] for m in modes)
    assert all(p.grad is None for p in of(net) + of(D)) and not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_adversary_reaches_the_encoder_and_not_the_discriminator(name):
    row, numbers = methods[name], toy.recipe()
    built = toy.made(row, toy.for_row(row), numbers)
    adversary = "task_adv" if "task_adv" in row.terms else "lang_adv"
    D = built.phases[0].trains.requires_grad_(False)
    loss, _ = Objective({adversary: 1.0}, built.net, D)(built.phases[1].data(0)[0])
    loss.backward()
    assert sum(p.grad.abs().sum() for p in of(built.net.encoder) if p.grad is not None) > 1e-3
    assert all(p.grad is None for p in of(D))
    assert all(p.grad is None for n, p in built.net.named_parameters() if n.startswith(("head", "shared")))


def test_zeroed_gradients_do_not_freeze():
    "AdamW moves a parameter of zero gradient that has moments; so freezing means `requires_grad`"
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([p], 1e-2, weight_decay=0.0)
    for g in (1.0, 0.0):
        before, p.grad = p.item(), torch.full_like(p, g)
        optimizer.step()
        assert p.item() != before


@pytest.mark.slow
def test_the_discriminator_learns_what_can_be_told():
    "By Eq. 5, on features that carry the task's mark; by Eq. 6 it would unlearn it"
    D = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    toy.redraw(D, "separable")
    task = torch.arange(64) % 2
    e = torch.stack([2.0 * task - 1, *(torch.arange(64) * k % 7 / 7 for k in (1, 2, 3))], 1)

    def accuracy(term, start):
        D.load_state_dict(start)
        fit(
            [
                Phase(
                    "discriminator",
                    D,
                    Objective({term: 1.0}, discriminator=D),
                    lambda round: [{"e": e, "e_aug": e, "task": task}],
                    1,
                    100,
                    lr=1e-2,
                )
            ],
            Loop(1),
        )
        with torch.no_grad():
            return (D(e).argmax(-1) == task).double().mean().item(), (D(e).softmax(-1) - 0.5).abs().max().item()

    start = toy.state(D)
    told, sure = accuracy("task_disc", start)
    _, unsure = accuracy("task_adv", toy.state(D))
    assert told > 0.9 and sure > 0.4 > 0.2 > unsure


# ------------------------------------------------------------------ what is encoded
def test_finetune_encodes_x_only():
    row, numbers = methods["finetune"], toy.recipe(rounds=2)
    built = toy.made(row, toy.for_row(row), numbers)
    watch = Watch(built.net.encoder)
    lines_of(built, numbers)
    calls, texts, modes = watch.take()
    assert texts == times(texts_of(built.views[0], ""), 2) and calls == 2 * 3 and modes == {(True, True)}
    assert set(built.phases[0].data(0)[0]) == {"x", "y", "task"} and built.switch_rates(0) == {}


def test_cosda_ml_encodes_switched_text_only_and_draws_it_every_round():
    row, numbers = methods["cosda_ml"], toy.recipe(rounds=2)
    built = toy.made(row, toy.for_row(row), numbers)
    watch = Watch(built.net.encoder)
    lines_of(built, numbers)
    calls, texts, _ = watch.take()
    first, second = (texts_of(built.views[0], "_aug", round) for round in (0, 1))
    assert texts == first + second and first != second and calls == 2 * 3
    assert not set(texts) & set(texts_of(built.views[0], "")) - set(first + second)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_each_text_once_for_the_discriminator_and_once_for_each_step(name):
    row, numbers = methods[name], toy.recipe(rounds=2, passes=3)
    built = toy.made(row, toy.for_row(row, n=7), numbers)
    trained = Watch(built.net.encoder)
    own = texts_of(built.views[0], "") + texts_of(built.views[0], "_aug")
    near = texts_of(built.views[1], "") + texts_of(built.views[1], "_aug") if len(built.views) == 2 else Counter()
    frozen = Watch(built.net.shared) if row.shared else None
    seen, n = [], len(built.views[0].y)
    batches = built.phases[1].steps

    def look(line):
        if line["phase"] == "discriminator" and line["pass"] == line["batch"] == 1:
            seen.append(("discriminator", trained.take()))
        if line["phase"] == "discriminator" and line["pass"] == 3 and line["batch"] == batches:
            assert trained.take()[0] == 0  # D's other passes encode nothing
        if line["phase"] == "net" and line["batch"] == batches:
            seen.append(("net", trained.take()))

    toy.train(built, numbers, on_step=look)
    assert [phase for phase, _ in seen] == 2 * ["discriminator", "net"]
    for phase, (calls, texts, modes) in seen:
        if phase == "discriminator":
            assert texts == own and calls == 1 and modes == {(False, False)}
        else:
            rest = texts - own
            assert texts == own + rest and calls == batches and modes == {(True, True)}
            assert rest.total() == (2 * n if near else 0) and set(rest) <= set(near) | set(own)
    if row.shared:
        calls, texts, modes = frozen.take()
        assert texts == own + near and modes == {(False, False)}  # once in all, whatever the rounds
        assert calls == (2 if near else 1)


def test_a_round_costs_what_the_model_says():
    """Of Alg. 2, in tokens T that enter linear layers: f_m T(x) + T(𝒜x) + T(x') + T(𝒜x') once in all; f_t forward only
    T(x) + T(𝒜x) once a round, whatever D's passes; f_t with gradient T(x) + T(𝒜x) + T(x') + T(𝒜x') of the
    neighbours that came along"""
    row, numbers = methods["macular"], toy.recipe(rounds=3, passes=4)
    stuff = toy.for_row(row, n=11)
    built = toy.made(row, stuff, numbers)
    tokens, total = Counter(), 0
    for name, encoder in (("f_m", stuff.shared), ("f_t", built.net.encoder)):
        first = next(m for m in encoder.body.modules() if isinstance(m, torch.nn.Linear))

        def count(layer, args, output, name=name):
            tokens[name, output.requires_grad] += args[0].shape[:-1].numel()

        first.register_forward_hook(count)
    toy.train(built, numbers)
    own, near = (sum(view.ids.size for view in v.items(0, ("", "_aug")).views.values()) for v in built.views)
    for round in range(3):
        for _, companions in built.phases[1].data(round).rows:
            total += built.views[1].items(round, ("", "_aug")).lengths[companions].sum()
    assert tokens == {("f_m", False): own + near, ("f_t", False): 3 * own, ("f_t", True): 3 * own + total}
    assert built.phases[0].steps * 3 * 4 == 3 * 4 * 3  # D took its steps all the same


def test_without_consistency_the_neighbour_is_never_touched():
    row, numbers = methods["macular_wo_consistency"], toy.recipe()
    stuff = toy.for_row(row)
    del stuff.rows["toy2"]
    built = toy.made(row, stuff, numbers)
    lines_of(built, numbers)
    assert len(built.views) == 1 and list(built.switch_rates(0)) == ["toy3"]
    assert not any("near" in name for name in built.phases[1].data(0)[0])


def test_the_neighbour_comes_round_evenly():
    row, numbers = methods["macular"], toy.recipe(rounds=3)
    built = toy.made(row, toy.for_row(row, n=9), numbers)
    watch = Watch(built.net.encoder)
    lines_of(built, numbers)
    near, (_, texts, _) = texts_of(built.views[1], ""), watch.take()
    visits = [texts[t] / near[t] for t in near if t not in texts_of(built.views[1], "_aug")]
    assert len(visits) > 5 and set(visits) <= {2, 3}  # 27 pairs of 11 different ones


def test_f_m_is_asked_again_where_switching_is_drawn_again():
    row = methods["macular"].derive("fresh", augment=CodeSwitch(redraw=True))
    numbers = toy.recipe(rounds=2)
    built = toy.made(row, toy.for_row(row), numbers)
    watch = Watch(built.net.shared)
    lines_of(built, numbers)
    _, texts, _ = watch.take()
    for views in built.views:
        switched = texts_of(views, "_aug", 0) + texts_of(views, "_aug", 1)
        assert not switched - texts
    batch = built.phases[1].data(1)[0]
    built.net.eval()
    with torch.no_grad():
        cached = built.net(batch, ("e", "e_aug", "e_near", "e_near_aug"))
        again = built.net({k: v for k, v in batch.items() if not k.startswith("m")}, tuple(cached))
    assert all((cached[k] - again[k]).abs().max() < 1e-12 for k in cached)


@pytest.mark.slow
def test_one_forward_for_all_views_changes_no_vector():
    row, numbers = methods["macular"], toy.recipe()
    for kind in toy.KINDS:
        built = toy.made(row, toy.for_row(row, kind=kind), numbers)
        batch, f_t = built.phases[1].data(0)[0], built.net.encoder.eval()
        views = [batch[f"x{s}"] for s in ("", "_aug", "_near", "_near_aug")]
        short = views[0]["lengths"][0] - 4
        views.append(
            {name: value[:short] for name, value in views[0].items()} | {"lengths": np.array([short])}
        )  # a shorter text
        with torch.no_grad():
            gaps = [
                (alone - beside).abs().max().item() for view, beside in zip(views, f_t(views)) for alone in f_t([view])
            ]
        assert max(gaps) < (1e-6 if kind == "modernbert" else 1e-12), kind


def test_views_get_dropout_of_their_own():
    row, numbers = methods["macular_nots"], toy.recipe()
    built = toy.made(row, toy.for_row(row, dropout=0.3), numbers)
    batch = built.phases[1].data(0)[0]
    twice = batch | {"x_aug": batch["x"]}
    out = built.net.train()(twice, ("e", "e_aug"))
    assert (out["e"] - out["e_aug"]).abs().max() > 1e-3
    out = built.net.eval()(twice, ("e", "e_aug"))
    assert (out["e"] - out["e_aug"]).abs().max() < 1e-12


# ------------------------------------------------------------------ every backbone, every row
@pytest.mark.slow
@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", ["finetune", "macular_nots", "macular"])
def test_backbones_build_and_step(name, kind):
    row, numbers = methods[name], toy.recipe(rounds=2)
    built = toy.made(row, toy.for_row(row, kind=kind, dropout=0.1), numbers, double=False, redrawn=False)
    before = toy.state(built.net)
    history, records = lines_of(built, numbers)
    assert all(np.isfinite(v) for line in history for v in line.values() if not isinstance(v, str))
    assert [r["round"] for r in records] == [1, 2] and not toy.same(before, toy.state(built.net))
    batch = built.phases[-1].data(0)[0]
    names = [n for n in built.phases[-1].loss.outputs if n.startswith(("e", "logits"))]
    classes = max(h.out_features for h in built.net.heads) if name != "macular" else 3
    for n, value in built.net.eval()(batch, tuple(names)).items():
        assert value.shape == (len(batch["y"]), 16 if n.startswith("e") else classes) and torch.isfinite(value).all()
    made = {"bert": 0, "xlmr": 1, "deberta": 1, "modernbert": 1}[
        kind
    ]  # layers a checkpoint of that kind does not hold are said
    assert sum("drawn from the seed" in note for note in built.notes) == made


@pytest.mark.slow
@pytest.mark.parametrize("name", [m for m in methods if methods[m].tasks in ("own", "near", "all")])
def test_every_row_of_the_paper_steps(name):
    row, numbers = methods[name], toy.recipe(batch_size=8)
    built = toy.made(row, toy.for_row(row, n=8), numbers, double=False)
    history, _ = lines_of(built, numbers)
    parts = set().union(*(line.keys() for line in history)) - {"step", "round", "phase", "pass", "batch", "loss"}
    assert parts == set(row.active()) | ({"task_disc"} if "task_adv" in row.active() else set()) | (
        {"lang_disc"} if "lang_adv" in row.active() else set()
    )
    for line in history:
        weights = row.active() if line["phase"] == "net" else {}
        assert line["loss"] == pytest.approx(sum(weights.get(p, 1.0) * line[p] for p in parts if p in line), rel=1e-5)


@pytest.mark.slow
def test_eight_rows_can_be_learned_by_heart():
    "The smallest sign that gradients point the right way"
    for name in ("macular_nots", "macular"):
        row, numbers = methods[name], toy.recipe(rounds=60, learning_rate=5e-3, discriminator_rate=1e-3, batch_size=16)
        stuff = toy.material("toy3", near="toy2", shared=True, n=8) if row.shared else toy.material("toy3", "toy2", n=4)
        history, _ = lines_of(toy.made(row, stuff, numbers, double=False), numbers)
        tasks = [line["task"] for line in history if line["phase"] == "net"]
        assert tasks[0] > 0.5 > 0.1 > tasks[-1], name


# ------------------------------------------------------------------ what is missing
def ends(row, stuff, numbers):
    "The state after training, and the notes"
    built = toy.made(row, stuff, numbers)
    toy.train(built, numbers)
    return toy.state(built.net), built


def test_one_task_has_no_task_adversary_and_says_so():
    row, numbers = methods["macular_nots"], toy.recipe()
    state, built = ends(row, toy.material("toy3"), numbers)
    without, _ = ends(methods["macular_nots_wo_task_adv"], toy.material("toy3"), numbers)
    assert toy.same(state, without) and [p.name for p in built.phases] == ["net"]
    assert sum("no task adversary" in note for note in built.notes) == 1


def test_no_neighbour_no_consistency_and_says_so():
    row, numbers = methods["macular"], toy.recipe()
    state, built = ends(row, toy.material("toy3", shared=True), numbers)
    without, _ = ends(methods["macular_wo_consistency"], toy.material("toy3", near="toy2", shared=True), numbers)
    assert toy.same(state, without) and sum("no consistency" in note for note in built.notes) == 1


def test_nothing_left_to_learn_by():
    row = methods["macular_nots"].derive("only the adversary", terms={"task_adv": 1.0})
    with pytest.raises(DataError, match="no loss left"):
        toy.made(row, toy.material("toy3"), toy.recipe())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "name,term",
    [("macular", "consistency"), ("macular", "lang_adv"), ("macular", "aug_kl"), ("macular_nots", "task_adv")],
)
def test_weight_zero_is_no_term(name, term):
    "Bit for bit, and not computed: no part of that name, no discriminator"
    row, numbers = methods[name], toy.recipe()
    absent = row.derive("absent", terms={k: w for k, w in row.terms.items() if k != term})
    zero, built = ends(row.reweight("zero", **{term: 0.0}), toy.for_row(row), numbers)
    none, _ = ends(absent, toy.for_row(row), numbers)
    full, _ = ends(row, toy.for_row(row), numbers)
    assert toy.same(zero, none) and not toy.same(zero, full)
    assert len(built.phases) == (1 if term.endswith("_adv") else 2)
    _, parts = built.phases[-1].loss(built.phases[-1].data(0)[0])
    assert term not in parts


def test_alpha_0_does_not_listen_to_f_m():
    numbers = toy.recipe(alpha=0.0)
    row = methods["macular"].derive("plain", terms={"task": 1.0})
    one, _ = ends(row, toy.material("toy3", shared=True), numbers)
    stuff = toy.material("toy3", shared=True)
    built = toy.made(row, stuff, numbers)
    for p in built.net.shared.parameters():
        p.data.mul_(-2)  # another f_m
    toy.train(built, numbers)
    other = toy.state(built.net)
    assert all(torch.equal(one[n], other[n]) for n in one if not n.startswith("shared."))


def test_alpha_1_listens_to_f_m_alone():
    numbers = toy.recipe(alpha=1.0)
    row = methods["macular"]
    stuff = toy.for_row(row)
    built = toy.made(row, stuff, numbers)
    f_t, head = toy.state(built.net.encoder), toy.state(built.net.head)
    toy.train(built, numbers)
    assert toy.same(f_t, toy.state(built.net.encoder)) and not toy.same(head, toy.state(built.net.head))
    batch = built.phases[1].data(0)[0]
    with torch.no_grad():
        assert torch.equal(built.net.eval()(batch, ("e",))["e"], batch["m"])


def test_alpha_is_linear():
    batch, made = None, {}
    for alpha in (0.0, 0.25, 1.0):
        built = toy.made(methods["macular"], toy.for_row(methods["macular"]), toy.recipe(alpha=alpha))
        batch = built.phases[1].data(0)[0]
        with torch.no_grad():
            made[alpha] = built.net.eval()(batch, ("e",))["e"]
    assert (
        (made[0.25] - (0.25 * made[1.0] + 0.75 * made[0.0])).abs().max() < 1e-12 < (made[1.0] - made[0.0]).abs().max()
    )


# ------------------------------------------------------------------ readings
@pytest.mark.slow
def test_readings_reach_the_net():
    numbers = toy.recipe()
    for readings, name in (
        (Readings(kl_s="as_printed"), "macular"),
        (Readings(e="cls"), "finetune"),
        (Readings(e="mean"), "finetune"),
        (Readings(start="shared"), "macular"),
    ):
        row = methods[name]
        usual, _ = ends(row, toy.for_row(row), numbers)
        stuff = toy.for_row(row)
        built = toy.made(row.derive("other", readings=readings), stuff, numbers, redrawn=readings.kl_s == "as_printed")
        toy.train(built, numbers)
        other = toy.state(built.net)
        assert usual.keys() != other.keys() or not toy.same(usual, other)


def test_f_t_may_start_from_f_m_again_and_again():
    "The second net that starts from the same f_m learns as the first one did"
    row, numbers, stuff = (
        methods["macular"].derive("warm", readings=Readings(start="shared")),
        toy.recipe(),
        toy.for_row(methods["macular"]),
    )
    states = []
    for _ in range(2):
        built = toy.made(row, stuff, numbers, redrawn=False)
        assert toy.gap(toy.state(built.net.encoder), toy.state(stuff.shared)) < 1e-6
        toy.train(built, numbers)
        assert toy.gap(toy.state(built.net.encoder), toy.state(stuff.shared)) > 1e-4
        states.append(toy.state(built.net))
    assert toy.same(*states)


def test_two_adversaries_are_not_mixed_up():
    "Each adversarial loss has a discriminator of its own, or the row is refused"
    row = methods["macular_nots"].add_terms("both", lang_adv=0.1)
    stuff = toy.material("toy3", "toy2", "toy4")
    try:
        built = toy.made(row, stuff, toy.recipe())
    except MacularError:
        return
    assert len([p for p in built.phases if p.name != "net"]) == 2


# ------------------------------------------------------------------ the masked columns, in a net
def test_a_batch_of_several_tasks_is_the_tasks_one_by_one():
    "Logits of a mixed batch are those of each task's own head, and foreign columns have probability 0 and no gradient"
    row, numbers = methods["macular_nots"], toy.recipe(batch_size=12)
    built = toy.made(row, toy.for_row(row), numbers)
    batch, net = built.phases[1].data(0)[0], built.net.eval()
    assert set(batch["task"].tolist()) == {0, 1, 2}
    logits = net(batch, ("logits",))["logits"]
    e = net(batch, ("e",))["e"]
    for row_logits, vector, i in zip(logits, e, batch["task"].tolist()):
        own = net.heads[i](vector)
        assert (row_logits[: len(own)] - own).abs().max() < 1e-12 and (row_logits.softmax(-1)[len(own) :] == 0).all()
    for i in range(3):
        net.zero_grad()
        rows = batch["task"] == i
        loss = Objective({"task": 1.0})({"logits": net(batch, ("logits",))["logits"][rows], "y": batch["y"][rows]})[0]
        loss.backward()
        assert [bool(h.weight.grad is not None and h.weight.grad.abs().sum() > 0) for h in net.heads] == [
            j == i for j in range(3)
        ]


def test_a_pass_has_one_loss_however_it_is_cut():
    "1/Σn over the union of tasks of unequal size, with a ragged last batch"
    row = methods["macular_nots"]
    whole = None
    for size in (1, 3, 7, 36):
        numbers = toy.recipe(batch_size=size)
        built = toy.made(row, toy.for_row(row), numbers)
        built.net.eval()
        batches = built.phases[1].data(0)
        with torch.no_grad():
            value = (
                sum(len(b["y"]) * built.phases[1].loss(b)[0] for b in (batches[i] for i in range(len(batches)))) / 36
            )
        whole = value if whole is None else whole
        assert (value - whole).abs() < 1e-12


def test_equal_numbers_from_a_copy():
    "Training a deep copy changes nothing in the original"
    row, numbers = methods["finetune"], toy.recipe()
    built = toy.made(row, toy.for_row(row), numbers)
    kept = deepcopy(built.net)
    before = toy.state(kept)
    toy.train(built, numbers)
    assert toy.same(before, toy.state(kept)) and not toy.same(before, toy.state(built.net))


# ------------------------------------------------------------------ a batch in portions
@cache
def two_rounds(name, **changes):
    row = methods[name]
    return ends(row, toy.for_row(row), toy.recipe(rounds=2, **changes))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("portions", [2, 3, 9])
def test_a_batch_in_portions_teaches_the_same(name, portions):
    (whole, _), (smaller, _) = two_rounds(name), two_rounds(name, batch_size=2)
    parts, other = two_rounds(name, accumulation=portions)
    assert toy.gap(whole, parts) < 1e-10 < 1e-4 < toy.gap(whole, smaller)
    batch = other.phases[-1].data(0)[0]
    assert len(batch) == min(portions, 4) and sum(share for share, _ in batch) == pytest.approx(1)
    assert max(len(part["y"]) for _, part in batch) == -(-4 // len(batch))


def losses(row, **changes):
    found = []
    numbers = toy.recipe(**changes)
    toy.train(toy.made(row, toy.for_row(row), numbers), numbers, on_step=found.append)
    return found


def test_its_losses_are_the_batch_s():
    for a, b in zip(losses(methods["macular"]), losses(methods["macular"], accumulation=2), strict=True):
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], abs=1e-12) for k in a)


@pytest.mark.parametrize(
    "error,portions,says",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "accumulation=2"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "accumulation=4"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            1,
            "accumulation=2",
        ),
    ],
)
def test_out_of_memory_says_what_takes_less(error, portions, says):
    def fail(batch):
        raise error

    built = toy.made(methods["finetune"], toy.material("toy3"), toy.recipe(accumulation=portions))
    with pytest.raises(SetupError, match=says):
        fit([replace(built.phases[0], loss=fail)], Loop(1))


def test_another_error_is_not_one_of_memory():
    def fail(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    built = toy.made(methods["finetune"], toy.material("toy3"), toy.recipe())
    with pytest.raises(RuntimeError, match="mat1"):
        fit([replace(built.phases[0], loss=fail)], Loop(1))
