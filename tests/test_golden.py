"""A golden trace: what the same settings train today they train tomorrow, from text to the tenth loss.

If a change here is meant, raise `ALGORITHM` in train/04_resolve (old trainings are then no longer found under new
keys) and remake the trace with `python tests/test_golden.py`; if it is not meant, the code is wrong, not the trace."""

import json
from pathlib import Path

import pytest
import torch
import toy
from torch.nn.utils.rnn import pad_sequence

from macular.core import mix, permutation
from macular.text.code_switch import CodeSwitch, Place
from macular.train.methods import Readings, methods
from macular.train.resolve import ALGORITHM

GOLDEN = Path(__file__).with_name("golden.json")
SAY = "the golden trace has changed. If that is meant: raise settings.ALGORITHM, then python tests/test_golden.py"
SENTENCES = [
    "The small dog sees a cat in the garden, and the good wine is not old.",
    "“Red wine”, the house: water!",
    "A cat reads the small red book in the good old house.",
    "The dog drinks water and wine in the small garden, and sees the red house.",
]
CLOSE = 1e-9


def padded(view):
    "A view as a rectangle, so that the trace can be read and does not depend on how a batch holds its texts"
    texts = [
        pad_sequence(view[name].split(view["lengths"].tolist()), batch_first=True)
        for name in ("input_ids", "token_type_ids")
    ]
    mask = torch.arange(texts[0].shape[1]) < torch.from_numpy(view["lengths"])[:, None]
    return {"attention_mask": mask.long().tolist(), "input_ids": texts[0].tolist(), "token_type_ids": texts[1].tolist()}


def plain(batch):
    "Tensors of ids as lists"
    return {name: padded(value) if isinstance(value, dict) else value.tolist() for name, value in sorted(batch.items())}


def ten_steps(row, seed=3):
    "Phase and loss parts of the first ten steps: D, the net, and D again in the second round"
    numbers, history = toy.recipe(seed=seed, rounds=2, batch_size=5 if row.shared else 18), []
    built = toy.made(row, toy.for_row(row), numbers)
    toy.train(built, numbers, on_step=history.append)
    return [
        {name: value for name, value in line.items() if name not in ("round", "pass", "batch")} for line in history[:10]
    ]


def first_batch(row):
    "Without f_m's features, which are no ids"
    batch = toy.made(row, toy.for_row(row), toy.recipe()).phases[-1].data(0)[0]
    return plain({name: value for name, value in batch.items() if not name.startswith("m")})


def bits():
    return [int(b) for b in mix(3, "golden", range(4))]


def twenty_words():
    switched = CodeSwitch(toy.LEXICON.langs, word=0.9)(
        SENTENCES, ["a", "b", "c", "d"], toy.LEXICON, Place(5, "toy3", 1)
    )
    return [[p.before, p.after, p.lang] for s in switched for p in s.pieces if p.lang][:20]


def trace():
    rows = {name: methods[name] for name in ("macular_nots", "macular")}
    return {
        "algorithm": ALGORITHM,
        "bits": bits(),
        "order": permutation(12, 3, "golden").tolist(),
        "switched": twenty_words(),
        "first_batch": {name: first_batch(row) for name, row in rows.items()},
        "steps": {name: ten_steps(row) for name, row in rows.items()},
    }


def compare(found, wanted):
    assert len(found) == len(wanted) and all(a.keys() == b.keys() for a, b in zip(found, wanted)), SAY
    for a, b in zip(found, wanted):
        for name, value in b.items():
            wanted_value = pytest.approx(value, rel=CLOSE, abs=CLOSE) if isinstance(value, float) else value
            assert a[name] == wanted_value, f"{SAY} (step {b['step']}, {name})"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text("utf-8"))


def test_the_number_is_raised_with_the_trace(golden):
    assert golden["algorithm"] == ALGORITHM, "ALGORITHM was raised: remake the trace with python tests/test_golden.py"


def test_chance(golden):
    assert golden["bits"] == bits() and golden["order"] == permutation(12, 3, "golden").tolist(), SAY


def test_twenty_switched_words(golden):
    assert twenty_words() == golden["switched"] and len(golden["switched"]) == 20, SAY


@pytest.mark.parametrize("name", ["macular_nots", "macular"])
def test_the_first_batch(golden, name):
    assert first_batch(methods[name]) == golden["first_batch"][name], SAY


@pytest.mark.parametrize("name", ["macular_nots", "macular"])
def test_ten_steps(golden, name):
    assert {line["phase"] for line in golden["steps"][name]} == {"discriminator", "net"}
    compare(ten_steps(methods[name]), golden["steps"][name])


def test_negative_controls(golden):
    "The trace sees another seed, another reading and a weight that is a millionth larger"
    macular = methods["macular"]
    others = {4: macular, 3: macular.derive("other", readings=Readings(kl_s="as_printed"))}
    for found in (
        *(ten_steps(row, seed) for seed, row in others.items()),
        ten_steps(macular.reweight("other", lang_adv=0.1 * (1 + 1e-6))),
    ):
        with pytest.raises(AssertionError, match="golden trace"):
            compare(found, golden["steps"]["macular"])


if __name__ == "__main__":
    new, old = trace(), json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if old.get("algorithm") == ALGORITHM and {k: v for k, v in old.items() if k != "steps"} != {
        k: v for k, v in new.items() if k != "steps"
    }:
        raise SystemExit("the trace differs, but ALGORITHM is the old one: raise it first")
    for name in old.get("steps", {}) if old.get("algorithm") == ALGORITHM else ():
        try:
            compare(new["steps"][name], old["steps"][name])
        except AssertionError as e:
            raise SystemExit(f"the trace differs, but ALGORITHM is the old one: raise it first\n{e}") from e
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in new.items())
    GOLDEN.write_text(f"{{{lines}}}\n", "utf-8")
    print(f"{GOLDEN.name}: {sum(map(len, new['steps'].values()))} steps under ALGORITHM {ALGORITHM}")
