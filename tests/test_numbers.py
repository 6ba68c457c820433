"""Every loss's gradient against differences of its values, and what is left of a step in which a number was none."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy

from macular.exceptions import NumericError
from macular.model.losses import Objective
from macular.store import newest, read_json
from macular.text import encode
from macular.train.config import check, fill
from macular.train.evaluate import EvaluationSet, evaluate
from macular.train.inputs import Data, trained_on
from macular.train.methods import methods
from macular.train.trainer import Loop, Phase, fit

ROWS = ("macular_nots", "macular")


def ready(name, double=True, **numbers):
    numbers = toy.recipe(**numbers)
    return toy.made(methods[name], toy.for_row(methods[name]), numbers, double=double), numbers


# ------------------------------------------------------------------ finite differences
def group(name):
    "A parameter's part of the net: embeddings, each layer, the last dense layer, the head; of D its two layers"
    words = name.split(".")
    return ".".join(
        words[:2]
        if name.startswith("heads")
        else [w for w in words if w.isdigit() or w in ("embeddings", "layer", "pooler", "head")] or words
    )


def value_of(part, batch, net, D):
    """A loss as a function of the parameters; of a divergence, the sides whose gradient is stopped stay where they are
    now"""
    if part not in ("aug_kl", "consistency"):
        return lambda: Objective({part: 1.0}, net, D)(batch)[0]
    names = ("logits_aug", "logits") if part == "aug_kl" else ("logits_near_aug", "logits_near")

    def logs():
        return [z.log_softmax(-1) for z in net(batch, names).values()]

    with torch.no_grad():
        p0, q0 = logs()

    def kl(a, b):
        return (a.exp() * (a - b)).sum(-1).mean()

    def surrogate():
        p, q = logs()
        return kl(p0, q) + kl(q0, p)

    return surrogate


def slope(value, p, direction, width=1e-6):
    "The derivative along a direction, by differences"
    found, before = [], p.detach().clone()
    with torch.no_grad():
        for way in (1, -1):
            p.copy_(before + way * width * direction)
            found.append(value().item())
        p.copy_(before)
    return (found[0] - found[1]) / (2 * width)


def pairs(name):
    "(loss, phase, net, D) of a row, the discriminator's first"
    built, _ = ready(name)
    D, net = (p.trains.eval().requires_grad_(True) for p in built.phases)
    for phase in built.phases:
        for part in phase.loss.weights:
            yield part, phase, net, D


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,part",
    [
        (name, part)
        for name, parts in (
            ("macular_nots", ("task_disc", "task", "aug_ce", "task_adv")),
            ("macular", ("lang_disc", "task", "aug_kl", "lang_adv", "consistency")),
        )
        for part in parts
    ],
)
def test_gradients_are_differences(name, part):
    "In float64, of every loss to every parameter that its phase trains"
    [(phase, net, D)] = [(phase, net, D) for found, phase, net, D in pairs(name) if found == part]
    batch = phase.data(0)[0]
    if part.endswith("_disc"):
        batch = {n: v.detach() if torch.is_tensor(v) else v for n, v in batch.items()}
    params = {n: p for n, p in phase.trains.named_parameters() if not n.startswith("shared.")}
    value = value_of(part, batch, net, D)
    loss = Objective({part: 1.0}, net, D)(batch)[0]
    grads = dict(zip(params, torch.autograd.grad(loss, params.values(), allow_unused=True)))
    steep = {}
    for i, (n, p) in enumerate(params.items()):
        direction = torch.from_numpy(np.random.default_rng(i).standard_normal(p.shape))
        wanted, found = slope(value, p, direction), 0.0 if grads[n] is None else (grads[n] * direction).sum().item()
        assert found == pytest.approx(wanted, rel=1e-6, abs=2e-8), n
        steep[group(n)] = max(steep.get(group(n), 0.0), abs(found))
    flat = {g for g, v in steep.items() if v < 1e-4}
    absent = {f"heads.{i}" for i in range(len(getattr(net, "heads", ()))) if "task" in batch and i not in batch["task"]}
    assert flat == ({g for g in steep if "head" in g} if part.endswith("_adv") else absent & steep.keys()), (
        "a loss that does not reach a part of the net"
    )


def test_negative_control_of_the_differences():
    "A gradient that leaves out one side of the divergence is seen"
    [(phase, net, D)] = [(phase, net, D) for found, phase, net, D in pairs("macular") if found == "aug_kl"]
    batch, p = phase.data(0)[0], net.head.weight
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(p.shape))
    both = slope(value_of("aug_kl", batch, net, D), p, direction)
    out = net(batch, ("logits", "logits_aug"))
    one = (
        (
            out["logits"].log_softmax(-1).exp().detach()
            * (out["logits"].log_softmax(-1).detach() - out["logits_aug"].log_softmax(-1))
        )
        .sum(-1)
        .mean()
    )
    assert abs((torch.autograd.grad(one, p)[0] * direction).sum().item() - both) > 1e-6


# ------------------------------------------------------------------ a number that is none
def poisoned(built, phase, part, at):
    "The same phases, but at one call a part of the loss is not a number"
    calls = [0]

    def wrapped(loss):
        def bad(batch):
            total, parts = loss(batch)
            calls[0] += 1
            return (total, parts) if calls[0] != at else (total + math.nan, parts | {part: parts[part] * math.nan})

        return bad

    built.phases[:] = [replace(p, loss=wrapped(p.loss)) if p.name == phase else p for p in built.phases]


def texts(built):
    return {t for v in built.views for rows in v.rows.values() for c in ("text_a", "text_b") for t in rows[c][:] if t}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "name,phase,part",
    [("macular", "net", "consistency"), ("macular", "discriminator", "lang_disc"), ("macular_nots", "net", "aug_ce")],
)
def test_what_is_left_of_a_bad_loss(tmp_path, name, phase, part):
    "Phase, step, term and rows, in words and as a file without a text; the state before it, and no other"
    built, numbers = ready(name, double=False, rounds=2)
    which = next(p for p in built.phases if p.name == phase)
    poisoned(built, phase, part, which.steps * which.passes + 2)  # the second step of the second round
    lines, before = [], []
    with pytest.raises(NumericError) as said:
        fit(
            built.phases,
            Loop(2, numbers.seed, every=0),
            folder=tmp_path,
            on_step=lambda line: (lines.append(line), before.append(toy.state(built.net))),
        )
    left, step = read_json(tmp_path / "nonfinite.json"), lines[-1]["step"] + 1
    assert {k: left[k] for k in ("step", "round", "phase", "pass", "batch", "seed")} == {
        "step": step,
        "round": 2,
        "phase": phase,
        "pass": 1,
        "batch": 2,
        "seed": numbers.seed,
    }
    assert left["not finite"] == {"loss": "nan", part: "nan"}
    rows = which.data(1).rows[1]
    own = rows[0] if rows.ndim == 2 else rows
    labels = [
        built.views[0].rows[t][[*built.views[0].rows[t]["id"]].index(i)]["label"]
        for t in left["items"]
        if t in [x.name for x in built.views[0].tasks]
        for i in left["items"][t]
    ]
    assert (
        sorted(labels) == sorted(built.views[0].y[own].tolist()) and sum(map(len, left["items"].values())) == rows.size
    )
    assert set(left["items"]) <= {t.name for v in built.views for t in v.tasks} and (
        "toy2" in left["items"] or name != "macular" or phase != "net"
    )
    message, file = str(said.value), (tmp_path / "nonfinite.json").read_text()
    assert (
        f"step {step} (phase '{phase}', round 2, batch 2)" in message
        and part in message
        and str(next(iter(left["items"].values()))[0]) in message
    )
    assert "nonfinite.json" in message and len(message) <= 1000 and not any(t in message + file for t in texts(built))
    assert toy.same(before[-1], toy.state(built.net)) and newest(tmp_path, "state").name == f"state-{step - 1}"
    assert said.value.exit_code == 6


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "phase,parameter",
    [
        ("net", "head.weight"),
        ("net", "encoder.body.model.bert.embeddings.word_embeddings.weight"),
        ("discriminator", "2.bias"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_is_named_by_its_parameter(tmp_path, phase, parameter, value):
    built, numbers = ready("macular", double=False)
    p = next(x for x in built.phases if x.name == phase)
    parameters, calls = dict(p.trains.named_parameters()), [0]
    name = (
        parameter
        if parameter in parameters
        else next(n for n in parameters if n.endswith("word_embeddings.weight") and not n.startswith("shared."))
    )

    def spoil(grad):
        calls[0] += 1
        return grad if calls[0] < 2 else grad.index_fill(0, torch.tensor([0]), value)

    parameters[name].register_hook(spoil)
    steps, before = [], []
    with pytest.raises(
        NumericError, match=f"the gradient of {name.replace('.', '[.]')}, the gradient is not a finite"
    ) as said:
        fit(
            built.phases,
            Loop(1, numbers.seed, every=0),
            folder=tmp_path,
            on_step=lambda line: (steps.append(line), before.append([toy.state(x.trains) for x in built.phases])),
        )
    left = read_json(tmp_path / "nonfinite.json")
    assert (
        left["not finite"].keys() == {"the gradient", f"the gradient of {name}"}
        and left["step"] == steps[-1]["step"] + 1
        and left["phase"] == phase
    )
    assert (
        all(toy.same(a, toy.state(x.trains)) for a, x in zip(before[-1], built.phases))
        and newest(tmp_path, "state").name == f"state-{steps[-1]['step']}"
    )
    assert len(str(said.value)) <= 1000


def test_an_id_of_any_length_stays_in_the_file(tmp_path):
    "The message is short whatever the ids are"

    class Named(list):
        def named(self, i):
            return {"own": ["x" * 500] * 3000}

    net = torch.nn.Linear(1, 1)
    with pytest.raises(NumericError) as said:
        fit(
            [Phase("net", net, lambda b: (net.weight.sum() * math.nan, {}), lambda round: Named([{}]), 1)],
            Loop(1),
            folder=tmp_path,
        )
    assert (
        len(str(said.value)) <= 1000
        and "and 2996 more" in str(said.value)
        and len(read_json(tmp_path / "nonfinite.json")["items"]["own"]) == 3000
    )


def test_without_a_folder_it_is_said_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built, numbers = ready("macular_nots")
    poisoned(built, "net", "task", 1)
    with pytest.raises(NumericError, match="phase 'net', round 1, batch 1.*Its examples: toy"):
        fit(built.phases, Loop(1, numbers.seed))
    assert not list(tmp_path.iterdir())


def test_a_batch_without_rows_is_no_step():
    "A mean over nothing is no number"
    net = torch.nn.Linear(2, 2)

    def loss(batch):
        return (value := torch.nn.functional.cross_entropy(net(batch["x"]), batch["y"])), {"task": value}

    with pytest.raises(NumericError, match="step 1 .*task"):
        fit(
            [
                Phase(
                    "net", net, loss, lambda round: [{"x": torch.zeros(0, 2), "y": torch.zeros(0, dtype=torch.long)}], 1
                )
            ],
            Loop(1),
        )
    assert torch.isfinite(net.weight).all()


# ------------------------------------------------------------------ half precision
@pytest.mark.parametrize("name", ROWS)
def test_losses_are_single_under_autocast(name):
    "The net computes in bfloat16, every loss in float32, and near the float32 ones"
    built, _ = ready(name, double=False)
    for phase in built.phases:
        batch = phase.data(0)[0]
        with torch.no_grad():
            _, exact = phase.loss(batch)
            with torch.autocast("cpu", torch.bfloat16):
                half = built.net(batch, ("logits",))["logits"].dtype if phase.name == "net" else torch.bfloat16
                loss, parts = phase.loss(batch)
        assert (
            half == torch.bfloat16
            and loss.dtype == torch.float32
            and all(v.dtype == torch.float32 for v in parts.values())
        )
        for part, v in parts.items():
            assert v.item() == pytest.approx(exact[part].item(), rel=0.1, abs=0.05), part


# ------------------------------------------------------------------ order and size
def test_the_order_of_tasks_is_not_a_choice():
    orders = [("pawsx", "xnli"), ("xnli", "pawsx"), "xnli,pawsx"]
    found = [
        trained_on(Data(fill(check(dict(preset="mini", task="pawsx", stage1=o)))), methods["macular_nots"])[0]
        for o in orders
    ]
    assert [[t.name for t in f] for f in found] == [["xnli", "pawsx"]] * 3 or [[t.name for t in f] for f in found] == [
        ["pawsx", "xnli"]
    ] * 3


def test_scores_do_not_depend_on_order_or_batch(monkeypatch):
    "Each row gets the same answer wherever it stands; probabilities to rounding"
    built, _ = ready("macular_nots", double=False)
    task, rows = toy.TASKS["toy3"], toy.rows("toy3", 40)
    mixed = rows.select(np.random.default_rng(0).permutation(40))

    def asked(rows):
        return (
            evaluate(built.net, EvaluationSet(task, {"en": rows}, built.views[0].text)).set_index("item").sort_index()
        )

    whole = asked(rows)
    tables = [asked(mixed)]
    for tokens in (1, 64):
        monkeypatch.setitem(encode._FEATURE_TOKENS, "cpu", tokens)
        tables.append(asked(mixed))
    columns = [c for c in whole if c.startswith("p_")]
    top = np.sort(whole[columns].to_numpy(), 1)
    close = (top[:, -1] - top[:, -2]) < 1e-6
    for table in tables:
        assert np.abs(table[columns].to_numpy() - whole[columns].to_numpy()).max() < 1e-6
        assert ((table["prediction"] == whole["prediction"]) | close).all() and (table["label"] == whole["label"]).all()
    assert whole["prediction"].nunique() > 1 and close.sum() < 2
