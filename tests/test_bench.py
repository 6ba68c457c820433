"""Measuring: ratios of rounds on a clock of our own, a drawn order, records, counted tokens; and three schedules that
learn the same."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import toy
from conftest import ROOT

from macular.exceptions import ParameterError, SetupError
from macular.model.modules import MultiTask, load_encoder
from macular.results.timing import (
    Cost,
    Spread,
    Target,
    _peak,
    _turns,
    _views,
    as_written,
    bare,
    cost,
    count_work,
    flops,
    fresh,
    keep,
    machine,
    naive,
    race,
    ratio,
    sizes,
)
from macular.store import read_json
from macular.text.batches import Tokens, cut
from macular.train.methods import methods

pytestmark = pytest.mark.slow

SCHEDULES = {"shared": lambda built, numbers: built.phases, "literal": as_written, "naive": naive}


class Clock:
    "Stands still unless somebody works"

    def __init__(self):
        self.now, self.ran = 0.0, []

    def __call__(self):
        return self.now

    def leg(self, name, seconds, units=1, getting_ready=100.0):
        pace = iter(seconds)

        def ready():
            self.now += getting_ready

            def work():
                self.now += next(pace)
                self.ran.append(name)
                return units

            return work

        return ready


# a race


def test_only_the_work_is_timed_by_its_units_and_the_first_run_is_not():
    clock = Clock()
    laps = race({"a": clock.leg("a", [99, 1, 2, 3], units=10), "b": clock.leg("b", [99, 2, 6, 3])}, 3, clock=clock)
    assert {name: [pytest.approx(s) for s in laps[name]] for name in laps} == {"a": [0.1, 0.2, 0.3], "b": [2, 6, 3]}


def test_without_warming_the_first_run_counts():
    clock = Clock()
    assert race({"a": clock.leg("a", [5, 1])}, 2, warm=False, clock=clock) == {"a": [5, 1]}


def test_ratios_are_of_rounds_not_of_medians():
    laps = {"slow": [2.0, 9.0, 40.0], "fast": [1.0, 3.0, 10.0]}
    assert ratio(laps, "slow", "fast") == Spread(3.0, 2.0, 4.0, 3)
    assert ratio(laps, "fast", "slow").median == 1 / 3


def test_a_busy_machine_changes_no_ratio():
    calm = {"slow": [2.0] * 5, "fast": [1.0] * 5}
    busy = {name: [s * load for s, load in zip(v, (1, 1.3, 7, 2, 1.1))] for name, v in calm.items()}
    assert ratio(busy, "slow", "fast") == ratio(calm, "slow", "fast")


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="is longer than argument 1"):
        ratio({"a": [1.0], "b": [1.0, 2.0]}, "a", "b")


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_rounds_is_no_race(rounds):
    with pytest.raises(ParameterError, match="at least one round"):
        race({"a": lambda: lambda: 1}, rounds)


def test_the_order_is_drawn_from_the_seed():
    names = list("abcdef")
    assert _turns(names, 30, 1) == _turns(names, 30, 1) != _turns(names, 30, 2)
    assert all(sorted(turn) == names for turn in _turns(names, 30))
    firsts = {turn[0] for turn in _turns(names, 60)}
    assert firsts == set(names), "in sixty rounds, everybody goes first at least once"
    assert _turns(names, 30)[:10] == _turns(names, 10), "more rounds do not change the first ones"


def test_the_race_keeps_to_that_order():
    clock = Clock()
    race({name: clock.leg(name, [1] * 9) for name in "abc"}, 8, seed=4, clock=clock)
    assert clock.ran == [*"abc", *(name for turn in _turns("abc", 8, 4) for name in turn)]


# targets and records


@pytest.mark.parametrize(
    "found, least, met",
    [
        (2.5, True, True),
        (2.4, True, False),
        (2.5, False, True),
        (2.6, False, False),
        (None, True, None),
        (Spread(2.6, 1.0, 3.0, 5), True, True),
        ([2.4, 1.0, 3.0, 5], True, False),
    ],
)
def test_a_target_is_met_by_the_median(found, least, met):
    aim = Target("x", found, 2.5, least)
    assert aim.met is met and aim.row()["met"] == {True: "yes", False: "**no**", None: "open"}[met]


def test_a_record_comes_back_as_it_was(tmp_path):
    path, aim = tmp_path / "deep" / "bench.json", Target("x", Spread(2.0, 1.0, 3.0, 5), 2.5, True)
    keep(path, "b", {"seconds": {"a": [0.5, 1e-9]}, "targets": [asdict(aim)]})
    keep(path, "a", {"n": 1})
    record = read_json(path)
    assert list(record) == ["a", "b"] and record["b"]["seconds"] == {"a": [0.5, 1e-9]}
    assert Target(**record["b"]["targets"][0]).row() == aim.row()


def test_measuring_one_leg_again_leaves_the_others(tmp_path):
    path = tmp_path / "bench.json"
    keep(path, "a", {"n": 1})
    keep(path, "b", {"n": 2})
    before = path.read_bytes()
    keep(path, "a", {"n": 1})
    assert path.read_bytes() == before, "a record has no date"
    keep(path, "a", {"n": 3})
    assert read_json(path)["a"]["n"] == 3 and read_json(path)["b"]["n"] == 2


def test_a_machine_is_described_but_not_named():
    import platform

    said = json.dumps(machine())
    assert (
        machine()["threads"]
        and machine()["versions"]["torch"]
        and platform.node() not in said.replace(platform.machine(), "")
    )


# counting


def store():
    return Tokens(np.arange(3, 16, dtype=np.int32), np.zeros(13, np.int8), np.array([0, 5, 8, 13]), 0)


@pytest.mark.parametrize("kind", ["bert", "xlmr", "deberta"])
def test_real_and_computed_tokens(kind):
    tokens = store() if kind == "bert" else Tokens(store().ids, None, store().starts, toy.tokenizer(kind).pad_token_id)
    net = MultiTask(load_encoder(toy.backbone(kind), 0), [2], 0)
    with count_work(net) as counts:
        net({"x": cut(tokens, np.array([0, 1, 2]))}, ("logits",))
    assert counts["encoder.trained"] == 13 and counts["encoder.trained.texts"] == 3 and counts["encoder.calls"] == 1
    assert (counts["encoder.computed"] == 13) == (kind != "deberta"), "a padded backbone computes more than it is asked"


def test_what_learns_nothing_is_not_trained():
    net = MultiTask(load_encoder(toy.backbone(), 0), [2], 0).requires_grad_(False)
    with count_work(net) as counts:
        net({"x": cut(store(), np.array([0]))}, ("e",))
    assert counts["encoder.encoded"] == 5 and not counts["encoder.trained"]


def test_afterwards_nothing_is_counted():
    net = MultiTask(load_encoder(toy.backbone(), 0), [2], 0)
    with count_work(net) as counts:
        pass
    net({"x": cut(store(), np.array([0]))}, ("e",))
    assert not counts


def test_arithmetic_of_a_forward_pass():
    config = load_encoder(toy.backbone(), 0).config
    h, m, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers

    def one(T):
        return layers * (2 * T * (4 * h * h + 2 * h * m) + 4 * h * T * T)

    assert flops(config, [7, 11]) == one(7) + one(11) and flops(config, np.array([7])) == one(7)


def test_memory_of_a_fresh_process():
    ballast = bytearray(200_000_000)
    small, big = (fresh("held = bytearray(given['n'])\nresult = len(held)", n=n) for n in (1, 100_000_000))
    assert small[0] == 1 and 90 < big[1] - small[1] < 130 and len(ballast) and _peak() > 200


def test_a_program_that_fails_says_why():
    with pytest.raises(SetupError, match="ZeroDivisionError"):
        fresh("result = 1 / 0")


# schedules


def test_what_each_loss_looks_at():
    assert (
        _views(["task"]) == ("",)
        and set(_views(["lang_adv"])) == {"", "_aug"}
        and set(_views(["consistency"])) == {"_near", "_near_aug"}
    )
    assert set(_views(["task_disc"])) == {"", "_aug"} and _views([]) == ()


def ready(name, double=True):
    row, numbers = methods[name], toy.recipe(batch_size=4)
    stuff = toy.for_row(row, n=10)
    return row, toy.made(row, stuff, numbers, double=double), numbers


@pytest.mark.parametrize("name", ["macular", "macular_wo_consistency"])
@pytest.mark.parametrize("schedule", ["literal", "naive"])
def test_other_schedules_learn_the_same(name, schedule):
    row, built, numbers = ready(name)
    before = toy.state(built.net)
    toy.train(built, numbers)
    row, other, numbers = ready(name)
    other.phases = SCHEDULES[schedule](other, numbers)
    toy.train(other, numbers)
    assert toy.gap(toy.state(built.net), toy.state(other.net)) < 1e-10 < 1e-4 < toy.gap(before, toy.state(built.net))
    assert toy.gap(toy.state(built.phases[0].trains), toy.state(other.phases[0].trains)) < 1e-10


def test_line_4_read_to_the_letter_learns_something_else():
    ends = []
    for both in (False, True):
        row, built, numbers = ready("macular")
        built.phases = as_written(built, numbers, both)
        toy.train(built, numbers)
        ends.append(toy.state(built.phases[0].trains))
    assert toy.gap(*ends) > 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["macular", "macular_wo_consistency"])
def test_counted_tokens_are_the_formulas(name, schedule):
    row, built, numbers = ready(name)
    with count_work(built.net) as once:
        tokens = sizes(bare(built.phases[-1].data(0)))
    built.phases = SCHEDULES[schedule](built, numbers)
    with count_work(built.net) as counts:
        toy.train(built, numbers)
    said = cost(row, tokens, schedule, numbers.passes)
    assert (counts["encoder.trained"], counts["encoder.encoded"] + counts["shared.encoded"]) == (
        said.trained,
        said.encoded,
    )
    if name == "macular_wo_consistency":
        assert once["shared.encoded"] == cost(row, tokens).once
    assert (counts["shared.calls"] == 0) == (schedule == "shared")


@pytest.mark.parametrize("name", ["finetune", "cosda_ml", "macular_nots", "macular_nots_wo_task_adv"])
def test_rows_with_one_encoder_are_counted_too(name):
    row, built, numbers = ready(name)
    tokens = sizes(built.phases[-1].data(0))
    with count_work(built.net) as counts:
        toy.train(built, numbers)
    said = cost(row, tokens, passes=numbers.passes)
    assert (counts["encoder.trained"], counts["encoder.encoded"], said.once) == (said.trained, said.encoded, 0)


@pytest.mark.parametrize(
    "name",
    [
        "finetune",
        "cosda_ml",
        "rs_da",
        "xtune",
        "macular_nots",
        "macular_nots_grl",
        "macular",
        "macular_wo_lang_adv",
        "macular_wo_consistency",
        "macular_xtune",
        "macular_rs_da",
    ],
)
def test_the_forward_passes_in_a_record_are_those_of_its_training(name):
    "Two rounds; a text that is trained on counts as three, and the frozen encoder's texts count once a draw"
    numbers = toy.recipe(rounds=2)
    built = toy.made(methods[name], toy.for_row(methods[name]), numbers)
    with count_work(built.net) as counts:
        toy.train(built, numbers)
    texts = {kind: sum(n for k, n in counts.items() if k.endswith(f"{kind}.texts")) for kind in ("trained", "encoded")}
    assert built.forwards == 3 * texts["trained"] + texts["encoded"]


def test_formulas_on_texts_of_one_length():
    equal = dict.fromkeys(("", "_aug", "_near", "_near_aug"), 3)

    def epochs(name, **how):
        return cost(methods[name], equal, **how).plain() / 3

    assert (
        epochs("finetune") == 1
        and epochs("macular") == pytest.approx(14 / 3)
        and epochs("macular_wo_consistency") == pytest.approx(8 / 3)
    )
    assert epochs("macular", schedule="literal") == 8 and epochs(
        "macular", schedule="literal", both=True
    ) == pytest.approx(32 / 3)
    assert epochs("macular", schedule="naive", both=True) == pytest.approx(44 / 3) and epochs(
        "macular_nots"
    ) == pytest.approx(8 / 3)
    assert Cost(30, 33).plain(3.3) == pytest.approx(40)


# what is committed


def test_the_committed_record_is_whole():
    record = read_json(ROOT / "nbs" / "records" / "bench.json")
    for section, found in record.items():
        assert found["machine"]["processor"] and found["machine"]["versions"], section
        for aim in found.get("targets", []):
            assert Target(**aim).row()["target"]
    assert {"trainer", "input", "switch", "macular", "memory", "growth", "evaluation", "gpu"} <= record.keys()
    assert (
        record["macular"]["counted as the formula says, no padding"]
        and record["switch"]["facts"]["ids of both forms equal"]
    )
