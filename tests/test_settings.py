"""Parameters as people write them: what is refused, what is said, and what makes a key."""

from dataclasses import replace

import numpy as np
import pytest

from macular.arguments import from_notebook
from macular.data.tasks import tasks
from macular.exceptions import ParameterError
from macular.train.config import _SOURCES, Job, check, fill, presets
from macular.train.methods import methods
from macular.train.resolve import method_of, training_key


@pytest.mark.parametrize(
    "given,said",
    [
        ({"lrr": 1e-5}, "unknown parameter 'lrr'"),
        ({"learning_rat": 1e-5}, "Did you mean 'learning_rate'"),
        ({"method": "makular"}, "Did you mean 'macular'"),
        ({"preset": "tiny"}, "There is: auto, mini, paper, quick"),
        ({"learning_rate": "2e-5"}, "2.0e-05"),
        ({"learning_rate": "fast"}, "a number is needed"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": float("nan")}, "must be"),
        ({"learning_rate": float("inf")}, "must be"),
        ({"learning_rate": 2}, "at most 1"),
        ({"learning_rate": True}, "a number is needed"),
        ({"batch_size": 8.5}, "a whole number"),
        ({"batch_size": "8"}, "leave out the quotes"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": float("nan")}, "a whole number"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**32}, "at most"),
        ({"seed": 1.5}, "a whole number"),
        ({"alpha": 1.1}, "at most 1"),
        ({"alpha": -0.1}, "at least 0"),
        ({"alpha": "0,5"}, "a number is needed"),
        ({"beta2": -1}, "at least 0"),
        ({"rounds": 0}, "at least 1"),
        ({"max_length": 2}, "at least 8"),
        ({"word_rate": 1.5}, "at most 1"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"langs": ["de", False]}, "quote it: 'no'"),
        ({"langs": False}, "quote it: 'no'"),
        ({"langs": "de,de"}, "twice"),
        ({"langs": 3}, "a list of names"),
        ({"deterministic": "yes"}, "say true or false"),
        ({"task": ""}, "task is empty"),
        ({"preset": ""}, "auto, mini, quick, paper"),
        ({"out": ""}, "leave it out for 'runs'"),
        ({"task": "xnil"}, "Did you mean 'xnli'"),
        ({"task": "no/such.toml"}, "cannot be read"),
        ({"langs": "dee"}, "Did you mean 'de'"),
        ({"task": "pawsx", "langs": "en,sw"}, "unknown language of pawsx 'sw'"),
        ({"stage1": "papr"}, "Did you mean 'paper'? There is: available, paper, pawsx"),
        ({"stage1": "avialable", "method": "finetune"}, "Did you mean 'available'"),
        ({"stage1": "xnli,paper"}, "'paper' stands for a set of tasks"),
        ({"stage1": ""}, "stage1 is empty"),
        ({"method": "macular_nots_wo_xnli"}, "does not learn 'xnli'"),
        ({"backbone": "mini-brt"}, "Did you mean 'mini-bert'"),
        ({"backbone": "./nowhere"}, "no folder './nowhere'"),
        ({"alpha": "0.5"}, "alpha is the text '0.5', not a number: leave out the quotes"),
        ({"alpha": "inf"}, "a number is needed"),
        ({"learning_rate": "25e-6"}, "write 2.5e-05"),
        ({"learning_rate": "123e-7"}, "write 1.23e-05"),
        ({"max_train": 10**400}, "at most 1000000000"),
        ({"alpha": -(10**5000)}, "at least 0"),
        ({"method": "finetune", "alpha": 0.3}, "alpha is 0.3, but 'finetune' has no shared encoder"),
        ({"method": "finetune", "word_rate": 0.2}, "'finetune' has no augmentation"),
        ({"method": "cosda_ml", "stage1": "xnli,qam"}, "stage1 is xnli, qam, but 'cosda_ml' has no stage 1"),
        ({"method": "cosda_ml", "discriminator_rate": 0.2}, "has no adversary"),
        ({"method": "macular_nots", "beta3": 0.2}, "has no 'consistency' loss"),
        ({"task": 3}, "a text is needed"),
        ({"extensions": "no_such_module_here"}, "cannot be imported"),
        ({"x=1\nimport os": 1}, "unknown parameter"),
    ],
)
def test_refused(given, said):
    with pytest.raises(ParameterError) as e:
        check(given)
    assert said in str(e.value) and len(str(e.value)) < 1000


def test_all_problems_at_once():
    with pytest.raises(ParameterError) as e:
        check({"lrr": 1, "alpha": 2, "seed": -1})
    assert len(str(e.value).splitlines()) == 3


def test_forms_that_mean_the_same():
    assert check({"langs": "en, de"}) == check({"langs": ["en", "de"]})
    assert check({"stage1": "available"}).stage1 == "available" and check({"stage1": "xnli,qam"}).stage1 == (
        "xnli",
        "qam",
    )
    assert check({"learning_rate": None, "backbone": ""}) == Job()
    assert check({"seed": 3.0}).seed == 3
    assert (
        Job(stage1="pawsx, xnli", langs="en,de")
        == Job(stage1=["pawsx", "xnli"], langs=["en", "de"])
        == check({"stage1": "pawsx,xnli", "langs": "en,de"})
    )
    assert Job(stage1=("available",)).stage1 == "available"


@pytest.mark.parametrize(
    "name,value,plain",
    [
        ("seed", np.int64(3), 3),
        ("batch_size", np.float64(8), 8),
        ("learning_rate", np.float32(2e-5), 2e-5),
        ("alpha", 1, 1.0),
    ],
)
def test_numbers_of_other_types(name, value, plain):
    found = getattr(check({name: value}), name)
    assert found == plain and type(found) is type(plain)


def test_a_filled_job_passes_its_own_check():
    "A parameter that the preset sets is not reported as one without effect"
    for method in methods:
        task = next(t for t in tasks if t not in methods[method].without)
        job = fill(Job(task=task, method=method, preset="mini"))
        assert check(vars(job)) == job


def test_a_task_file_of_ones_own(tmp_path):
    path = tmp_path / "weather.toml"
    path.write_text('name = "weather"\nlabels = ["dry", "wet"]\nlangs = ["nl"]\nsource_lang = "de"\n')
    assert check({"task": str(path), "method": "macular", "langs": "de,nl", "stage1": "weather,xnli"}).task == str(path)
    with pytest.raises(ParameterError, match="There is: de, nl"):
        check({"task": str(path), "langs": "en"})


def test_a_malformed_list_is_refused_at_once():
    for wrong in (dict(stage1=""), dict(langs=["de", False]), dict(langs="de,de")):
        with pytest.raises(ParameterError):
            Job(**wrong)


def test_claims_of_the_presets():
    said = " ".join(text for sources in _SOURCES.values() for text in sources.values())
    assert "any machine" not in said and "16 GB GPU, not measured" in said


def test_papermills_cell_is_read_whatever_it_holds():
    cell = "# Parameters\nseed = 4\nlrr = 0.1\n"
    with pytest.raises(ParameterError, match="unknown parameter 'lrr'"):
        from_notebook({"In": ["", cell], "seed": 4, "lrr": 0.1})
    assert from_notebook({"In": ["", cell.replace("lrr = 0.1\n", "")], "seed": 4, "result": 1}).seed == 4


def test_auto(monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    assert fill(Job()).preset == "mini" and fill(Job(), gpu=True).preset == "quick"
    monkeypatch.setenv("IN_TEST", "1")
    assert fill(Job(), gpu=True).preset == "mini"
    monkeypatch.setenv("MACULAR_PRESET", "paper")
    assert fill(Job()).preset == "paper" and fill(Job(preset="mini")).preset == "mini"
    assert all(v is not None for p in presets.values() for v in (p.learning_rate, p.rounds, p.batch_size))


@pytest.mark.parametrize(
    "changes,same",
    [
        (dict(out="x", data_dir="y", lexicon_dir="z", deterministic=False, preset="quick"), True),
        (dict(seed=1), False),
        (dict(learning_rate=1e-4), False),
        (dict(batch_size=8), False),
        (dict(rounds=1), False),
        (dict(max_length=32), False),
        (dict(precision="bf16"), False),
        (dict(beta3=0.0), False),
        (dict(alpha=0.3), False),
        (dict(discriminator_rate=0.01), False),
        (dict(word_rate=0.1), False),
        (dict(beta1=1.0), True),
        (dict(pool=1), False),
        (dict(accumulation=2), False),
    ],
)
def test_what_a_training_is_keyed_by(changes, same):
    def found(job):
        return training_key(method_of(job), [tasks["xnli"]], job, {"rows": "abc"}, "stage1/2")

    base = fill(check({"preset": "mini"}))
    assert (found(base) == found(replace(base, **changes))) == same


def test_what_does_not_matter_is_not_in_the_key():
    "Fine-tuning has no alpha, no discriminator and switches nothing"
    base = fill(check({"preset": "mini", "method": "finetune"}))

    def found(job):
        return training_key(method_of(job), [tasks["xnli"]], job, {})

    assert (
        len({found(replace(base, **c)) for c in ({}, {"alpha": 0.1}, {"discriminator_rate": 0.5}, {"word_rate": 0.1})})
        == 1
    )


def test_a_betas_place():
    terms = method_of(fill(check({"beta1": 0.3, "beta2": 0.2, "beta3": 0.7}))).terms
    assert terms == {"task": 1.0, "aug_kl": 0.3, "lang_adv": 0.2, "consistency": 0.7}
    assert methods["macular"].terms["aug_kl"] == 1.0
