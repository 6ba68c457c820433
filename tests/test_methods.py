"""The rows of the paper's tables: how they differ, what their losses are, what may not be misspelt."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import toy

from macular.core import diff, key
from macular.exceptions import ParameterError
from macular.model.losses import Objective, terms
from macular.text.code_switch import CodeSwitch, Synonyms
from macular.train.config import Job, fill
from macular.train.methods import Method, Readings, differences, finetune, methods
from macular.train.resolve import method_of, training_key

# §4.1.2 and §4.4-4.6, read a second time: row -> (title, what it is derived from, {what differs: (there, here)}).
# CoSDA-ML is fine-tuning on code-switched text that is drawn anew in every epoch. An ablation of a loss is its weight;
# leaving
# the task adversary out of Macular is leaving it out of the f_m below it; a task is left out of stage 1.
PAPER = {
    "finetune": ("Fine-tuning", None, {}),
    "cosda_ml": (
        "CoSDA-ML",
        "finetune",
        {
            "augment": (None, CodeSwitch(word=0.5, sentence=1.0, redraw=True)),
            "terms.task": (1.0, None),
            "terms.aug_ce": (None, 1.0),
        },
    ),
    "macular_nots": ("Macular-NoTS", None, {}),
    "macular": ("Macular", None, {}),
    "macular_wo_consistency": ("Macular w/o consistency", "macular", {"terms.consistency": (0.1, 0.0)}),
    "macular_wo_lang_adv": ("Macular w/o language adversary", "macular", {"terms.lang_adv": (0.1, 0.0)}),
    "macular_wo_task_adv": (
        "Macular w/o task adversary",
        "macular",
        {"shared": ("macular_nots", "macular_nots_wo_task_adv")},
    ),
    "macular_nots_wo_task_adv": ("Macular-NoTS w/o task adversary", "macular_nots", {"terms.task_adv": (1.0, 0.0)}),
    # Prompt, RS-DA and Syn. are fine-tuning with another head, on copies with synonyms, with trees in the encoder and a
    # loss for them.
    "prompt": ("Prompt", "finetune", {"head": ("linear", "cloze")}),
    "rs_da": (
        "RS-DA",
        "finetune",
        {"synonyms": (None, Synonyms(copies=3)), "terms.task": (1.0, None), "terms.copy_ce": (None, 1.0)},
    ),
    "syn": ("Syn.", "finetune", {"encoder": ("plain", "syntax"), "terms.structure": (None, 1.0)}),
    # What the paper leaves out: Liu et al. 2017 weigh the reversed gradient by 0.05; xTune's release has lambda_1 = 5.
    "mtl": ("Multi-task", None, {}),
    "mtl_ft": ("Multi-task, then fine-tuning", "finetune", {"shared": (None, "mtl"), "shared_as": ("frozen", "start")}),
    "xtune": (
        "xTune, stage 1",
        "finetune",
        {"augment": (None, CodeSwitch(redraw=True)), "terms.xtune_kl": (None, 5.0)},
    ),
    "macular_nots_grl": (
        "Macular-NoTS, gradient reversal",
        "macular_nots",
        {"terms.task_adv": (1.0, None), "terms.task_grl": (None, 0.05)},
    ),
    "macular_grl": (
        "Macular, gradient reversal",
        "macular",
        {"shared": ("macular_nots", "macular_nots_grl"), "terms.lang_adv": (0.1, None), "terms.lang_grl": (None, 0.05)},
    ),
    "macular_nots_redrawn": ("Macular-NoTS, 𝒜 redrawn", "macular_nots", {"augment.redraw": (False, True)}),
    "macular_redrawn": (
        "Macular, 𝒜 redrawn",
        "macular",
        {"augment.redraw": (False, True), "shared": ("macular_nots", "macular_nots_redrawn")},
    ),
    "macular_as_printed": ("Macular, KL_s as printed", "macular", {"readings.kl_s": ("symmetric", "as_printed")}),
    "finetune_x2": ("Fine-tuning ×2", "finetune", {"ensemble": (1, 2)}),
    "cosda_ml_x2": ("CoSDA-ML ×2", "cosda_ml", {"ensemble": (1, 2)}),
    "macular_rs_da": (
        "Macular + RS-DA",
        "macular",
        {"synonyms": (None, Synonyms(copies=3)), "terms.copy_ce": (None, 1.0)},
    ),
    "macular_syn": ("Macular + Syn.", "macular", {"encoder": ("plain", "syntax"), "terms.structure": (None, 1.0)}),
    "macular_xtune": (
        "Macular + xTune",
        "macular",
        {"augment.redraw": (False, True), "terms.aug_kl": (1.0, None), "terms.xtune_kl": (None, 5.0)},
    ),
    "macular_nots_wo_qadsm": ("Macular-NoTS w/o QADSM", "macular_nots", {"without": ((), ("qadsm",))}),
    "macular_nots_wo_qam": ("Macular-NoTS w/o QAM", "macular_nots", {"without": ((), ("qam",))}),
    "macular_nots_wo_pawsx": ("Macular-NoTS w/o PAWS-X", "macular_nots", {"without": ((), ("pawsx",))}),
    "macular_nots_wo_xnli": ("Macular-NoTS w/o XNLI", "macular_nots", {"without": ((), ("xnli",))}),
}


def flat(record):
    "A record as path -> value, without `diff`: names and titles aside"
    found = {}
    for name, value in vars(record).items():
        if name in ("name", "title", "parent"):
            continue
        if isinstance(value, (dict, Readings)):
            found |= {f"{name}.{k}": v for k, v in (value if isinstance(value, dict) else vars(value)).items()}
        else:
            found[name] = value
    return found


def differ(a, b):
    a, b = flat(a), flat(b)
    found = {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    if None not in (pair := found.get("augment", (None,))):
        del found["augment"]
        found |= {f"augment.{k}": (v, vars(pair[1])[k]) for k, v in vars(pair[0]).items() if v != vars(pair[1])[k]}
    return found


@pytest.mark.parametrize("name", PAPER)
def test_a_row_differs_from_its_parent_as_the_paper_says(name):
    title, parent, wanted = PAPER[name]
    row = methods[name]
    assert row.name == name and row.title == title and row.parent == parent
    told = {d["field"]: (d["before"], d["after"]) for d in differences() if d["row"] == name}
    assert told == wanted
    if parent:
        assert differ(methods[parent], row) == dict(diff(methods[parent], row)) == wanted


def test_the_four_rows_that_others_come_from():
    finetune, nots, macular = methods["finetune"], methods["macular_nots"], methods["macular"]
    assert (finetune.tasks, finetune.shared, finetune.augment, finetune.terms) == ("own", None, None, {"task": 1.0})
    assert (nots.tasks, nots.shared, nots.terms) == (
        "all",
        None,
        {"task": 1.0, "aug_ce": 1.0, "task_adv": 1.0},
    )  # Eq. 7
    assert (macular.tasks, macular.shared) == ("near", "macular_nots")
    assert macular.terms == {"task": 1.0, "aug_kl": 1.0, "lang_adv": 0.1, "consistency": 0.1}  # Eq. 15, §4.1.3
    assert (
        nots.augment == macular.augment == CodeSwitch()
        and not CodeSwitch().redraw
        and (CodeSwitch().word, CodeSwitch().sentence) == (0.5, 1.0)
    )
    assert vars(Readings()) == {"kl_s": "symmetric", "e": "auto", "start": "pretrained"}
    assert set(PAPER) == set(methods)


def test_negative_control_of_the_comparison():
    "It sees a changed weight, a changed task and a changed rate"
    parent = methods["macular"]
    for other in (
        parent.reweight("a", aug_kl=0.5),
        parent.derive("b", tasks="own"),
        parent.derive("c", augment=CodeSwitch(word=0.4)),
        parent.derive("d", readings=Readings(kl_s="as_printed")),
    ):
        found = differ(parent, other)
        assert len(found) == 1 and len(diff(parent, other)) == 1


def test_rows_are_data():
    for m in methods.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            m.tasks = "own"
        json.dumps(dataclasses.asdict(m))
    assert all(set(m.terms) <= set(terms) for m in methods.values())
    assert all(m.shared is None or m.shared in methods for m in methods.values())


# ------------------------------------------------------------------ keys
def test_what_makes_a_key():
    macular = methods["macular"]

    def of(row):
        return key(row.hashed_fields())

    absent = macular.derive("absent", terms={k: v for k, v in macular.terms.items() if k != "consistency"})
    assert (
        of(methods["macular_wo_consistency"])
        == of(absent)
        == of(macular.reweight("mine", "Mine", consistency=0))
        != of(macular)
    )
    assert of(macular.derive("other name", "other title")) == of(macular)
    assert of(macular.reweight("one", aug_kl=1)) == of(macular)  # 1 and 1.0
    assert of(macular.derive("order", terms=dict(reversed(macular.terms.items())))) == of(macular)
    changed = [
        macular.reweight("w", aug_kl=0.5),
        macular.derive("t", tasks="own"),
        *(
            macular.derive("a", augment=a)
            for a in (
                CodeSwitch(word=0.4),
                CodeSwitch(sentence=0.5),
                CodeSwitch(redraw=True),
                CodeSwitch(("de",)),
                None,
            )
        ),
        *(
            macular.derive("r", readings=r)
            for r in (Readings(kl_s="as_printed"), Readings(e="cls"), Readings(start="shared"))
        ),
        methods["macular_nots"],
        methods["macular_nots_wo_task_adv"],
        methods["macular_nots_wo_xnli"],
        methods["finetune"],
        methods["cosda_ml"],
        macular,
    ]
    assert len({of(m) for m in changed}) == len(changed)


def test_training_keys_follow_the_row():
    job = fill(Job(preset="mini"))
    digests, tasks = {"data": "x"}, [toy.TASKS["toy3"], toy.TASKS["toy2"]]

    def of(job, shared="s/1"):
        return training_key(method_of(job), tasks, job, digests, shared)

    def but(**changes):
        return dataclasses.replace(job, **changes)

    zero, without = of(but(method="macular", beta3=0.0)), of(but(method="macular_wo_consistency"))
    assert zero == without != of(job)
    assert of(job) == of(but(method="macular_wo_task_adv"))  # they differ in what lies below ...
    assert of(job) != of(job, "other/1")  # ... which has a key of its own
    assert of(but(out="elsewhere", data_dir="x", lexicon_dir="y")) == of(job)
    for change in (
        dict(seed=1),
        dict(alpha=0.4),
        dict(beta1=0.5),
        dict(learning_rate=1e-3),
        dict(rounds=1),
        dict(batch_size=8),
        dict(word_rate=0.3),
        dict(discriminator_rate=0.1),
    ):
        assert of(but(**change)) != of(job), change
    plain = but(method="finetune")
    assert of(dataclasses.replace(plain, discriminator_rate=0.5, alpha=0.9), "") == of(
        plain, ""
    )  # what it does not have cannot matter


# ------------------------------------------------------------------ misspelt
@pytest.mark.parametrize(
    "wrong,near",
    [("maculer", "macular"), ("macular-nots", "macular_nots"), ("fine_tune", "finetune"), ("cosda", "cosda_ml")],
)
def test_unknown_rows(wrong, near):
    with pytest.raises(ParameterError, match=f"'{near}'"):
        methods[wrong]


def test_every_loss_says_its_equation():
    for name in "task aug_ce task_disc task_adv aug_kl lang_disc lang_adv consistency".split():
        assert re.match(rf"Eqs?\. {terms[name].eq}(?: and \d+)?: ", terms[name].loss.__doc__), name


def test_unknown_losses():
    with pytest.raises(ParameterError, match="Did you mean 'consistency'"):
        methods["macular"].reweight("x", consistancy=0.2)
    with pytest.raises(ParameterError, match="Did you mean 'task_adv'"):
        Objective({"task_avd": 1.0})
    with pytest.raises(ParameterError):
        Objective({"no such loss": 0.0})  # weight zero or not
    with pytest.raises(ParameterError):
        methods["finetune"].reweight("x", task_adv=1.0)  # known, but not the row's
    with pytest.raises(ParameterError, match="no discriminator"):
        Objective({"task_adv": 1.0})


@pytest.mark.parametrize(
    "name,value",
    [
        ("kl_s", "printed"),
        ("kl_s", ""),
        ("kl_s", None),
        ("e", "pooler"),
        ("e", "CLS"),
        ("start", "share"),
        ("start", True),
    ],
)
def test_readings_are_checked(name, value):
    with pytest.raises(ParameterError, match=f"reading '{name}'"):
        Readings(**{name: value})


def test_an_undecided_e_is_hashed_as_the_stock_heads_input():
    "The keys of runs before there was a choice stay"
    fixed = finetune.derive("fixed", readings=Readings(e="head_input"))
    assert finetune.readings.e == "auto" and finetune.hashed_fields() == fixed.hashed_fields()
    for e in ("cls", "mean"):
        assert finetune.derive("other", readings=Readings(e=e)).hashed_fields() != fixed.hashed_fields()
        assert finetune.readings_for(e) == Readings(e=e) and fixed.readings_for(e) == fixed.readings


def test_another_row_of_the_same_name_is_refused():
    with pytest.raises(ParameterError, match="already another method named 'macular'"):
        methods.add(Method("macular", terms={"task": 1.0}))
    assert methods.add(methods["macular"]) is methods["macular"]


# ------------------------------------------------------------------ equations
EQUATIONS = {
    "task": 3,
    "aug_ce": 4,
    "task_disc": 5,
    "task_adv": 6,
    "aug_kl": 11,
    "lang_disc": 12,
    "lang_adv": 13,
    "consistency": 14,
}


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def ce(z, target):
    return -(target * np.log(softmax(z))).sum(-1).mean()


def kl_s(p, q):
    p, q = softmax(p), softmax(q)
    return ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)).mean()


def test_each_term_is_its_equation():
    "The number, and what it is applied to: outputs that differ in every view, so that no two can be mistaken"
    rng = np.random.default_rng(0)
    widths = dict(logits=3, logits_aug=3, logits_near=3, logits_near_aug=3, e=2, e_aug=2)
    out = {name: rng.normal(size=(5, width)) for name, width in widths.items()}
    y, task = np.array([0, 2, 1, 1, 0]), np.array([0, 1, 1, 0, 1])
    half, no, yes = np.full((5, 2), 0.5), np.eye(2)[np.zeros(5, int)], np.eye(2)[np.ones(5, int)]
    wanted = {
        "task": ce(out["logits"], np.eye(3)[y]),
        "aug_ce": ce(out["logits_aug"], np.eye(3)[y]),
        "task_disc": ce(out["e"], np.eye(2)[task]) + ce(out["e_aug"], np.eye(2)[task]),
        "task_adv": ce(out["e"], half) + ce(out["e_aug"], half),
        "aug_kl": kl_s(out["logits_aug"], out["logits"]),
        "lang_disc": ce(out["e"], no) + ce(out["e_aug"], yes),
        "lang_adv": ce(out["e"], half) + ce(out["e_aug"], half),
        "consistency": kl_s(out["logits_near_aug"], out["logits_near"]),
    }
    batch = {n: torch.from_numpy(v) for n, v in (out | {"y": y, "task": task}).items()}
    assert {name: t.eq for name, t in terms.items() if name in EQUATIONS} == EQUATIONS
    for name, value in wanted.items():
        loss, parts = Objective({name: 0.7}, discriminator=torch.nn.Identity())(batch)
        assert parts[name].item() == pytest.approx(value, rel=1e-12) and loss.item() == pytest.approx(
            0.7 * value, rel=1e-12
        ), name
    together = {name: 0.1 * i for i, name in enumerate(wanted, 1)}  # Eqs. 7 and 15: a sum, not an average
    assert Objective(together, discriminator=torch.nn.Identity())(batch)[0].item() == pytest.approx(
        sum(w * wanted[n] for n, w in together.items()), rel=1e-12
    )
    assert len({round(v, 6) for n, v in wanted.items() if n != "lang_adv"}) == 7


def test_as_printed_has_its_direction():
    "KL(𝒜(x) || x), as the arguments stand in Eqs. 11 and 14"
    p, q = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64), torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)
    P, Q = p.softmax(-1), q.softmax(-1)
    wanted = 2 * (P * (P / Q).log()).sum().item()
    for term, views in (("aug_kl", ("logits_aug", "logits")), ("consistency", ("logits_near_aug", "logits_near"))):
        assert Objective({term: 1.0}, as_printed=True)(dict(zip(views, (p, q))))[0].item() == pytest.approx(wanted)


ASKED = {
    "finetune": "logits",
    "cosda_ml": "logits_aug",
    "macular_nots": "logits logits_aug e e_aug",
    "macular_wo_consistency": "logits logits_aug e e_aug",
    "macular": "logits logits_aug e e_aug logits_near logits_near_aug",
    "macular_wo_lang_adv": "logits logits_aug logits_near logits_near_aug",
}


@pytest.mark.parametrize("name", ASKED)
def test_only_what_is_named_is_asked_for(name):
    assert set(Objective(methods[name].terms, discriminator=torch.nn.Identity()).outputs) == set(ASKED[name].split())
