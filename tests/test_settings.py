"""Parameters as people write them: what is refused, what is said, and what makes a key."""

from dataclasses import replace

import numpy as np
import pytest
import toy

from macular.arguments import from_notebook
from macular.data.tasks import find, tasks
from macular.exceptions import ParameterError
from macular.text.encode import ByCloze, TextEncoder, TextSettings
from macular.train.checks import check_inputs
from macular.train.config import _SOURCES, Job, check, fill, presets
from macular.train.inputs import Data
from macular.train.methods import methods
from macular.train.resolve import identity, method_of, resolve_job, settle, training_key


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
        ({"preset": ""}, "auto, mini, quick, real, paper"),
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


# a task's record, the preset, and parameters

SHOP = """
name = "shop"
labels = ["misses", "fits"]
langs = ["en", "de"]
{stated}

[source]
files = "{{split}}.{{lang}}.tsv"
text_a = "search"
text_b = "offer"
label = "verdict"
"""


@pytest.fixture
def shop(tmp_path):
    "A function that writes a task of one's own; every fourth pair of the German test set has 60 words more"

    def write(stated="", train=40):
        for name, n in (("train.en", train), ("dev.en", 12), ("test.en", 12), ("test.de", 12)):
            lines = ["search\toffer\tverdict"]
            for i in range(n):
                more = " the dog" * 30 if name == "test.de" and i % 4 == 0 else ""
                lines.append(f"the dog {i}{more}\tthe house\t{('misses', 'fits')[i % 2]}")
            (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
        (tmp_path / "shop.toml").write_text(SHOP.format(stated=stated))
        return {"task": str(tmp_path / "shop.toml"), "method": "finetune", "backbone": "mini-bert"}

    return write


STATED = "max_length = 100\nmax_train = 20\nlearning_rate = 0.003"


@pytest.mark.parametrize("preset", presets)
def test_parameter_then_record_then_preset(shop, preset):
    def of(job):
        return job.max_length or find(job.task).max_length, job.max_train, job.learning_rate

    usual = presets[preset]
    assert of(fill(check(shop() | {"preset": preset}))) == (
        usual.max_length or 128,
        usual.max_train,
        usual.learning_rate,
    )
    given = shop(STATED) | {"preset": preset}
    assert of(fill(check(given))) == (100, 20, 0.003)
    assert of(fill(check(given | {"max_length": 90, "max_train": 8, "learning_rate": 0.1}))) == (90, 8, 0.1)
    assert fill(fill(check(given))) == fill(check(given))


def test_the_mini_world_keeps_its_length_and_real_texts_have_their_tasks():
    def of(**given):
        return fill(check({"task": "qam", "method": "finetune"} | given)).max_length

    assert of(preset="mini") == 64 and of(preset="quick") is None
    assert of(preset="mini", backbone="mini-bert", data_dir="data") == 256


@pytest.mark.parametrize(
    "stated, said",
    [
        ("max_length = 4", "max_length must be a whole number of tokens from 8, not 4"),
        ("max_train = 1", "max_train must be a whole number of examples from 2, not 1"),
        ("max_train = 2.5", "max_train must be a whole number"),
        ("learning_rate = 2", "learning_rate must be a number above 0 and at most 1, not 2"),
        ('learning_rate = "2e-5"', "learning_rate must be a number"),
    ],
)
def test_a_record_states_what_a_parameter_could(shop, stated, said):
    with pytest.raises(ParameterError, match=said):
        check(shop(stated))


def resolved(given):
    return resolve_job(settle(check(given | {"preset": "mini"})))


def test_a_job_says_where_its_settings_come_from(shop):
    found = resolved(shop("max_length = 100") | {"learning_rate": 0.01}).settings
    assert found == "max_length 100 (task record), max_train 1,200 (preset mini), learning_rate 0.01 (parameter)"
    quick = resolve_job(fill(check(shop(STATED) | {"preset": "quick"})))
    assert [part.split(" (")[1] for part in quick.settings.split(", ")] == ["task record)"] * 3


def test_truncation_is_counted_for_each_language(shop):
    job = resolved(shop("max_length = 32"))
    said = [note for note in check_inputs(job) if "max_length" in note]
    assert said == ["examples of shop cut at 32 tokens (max_length): test in de 3 of 12 (25.0%)"]
    assert not [note for note in check_inputs(resolved(shop("max_length = 128"))) if "max_length" in note]
    mini = resolved({"task": "pawsx", "method": "finetune", "max_length": 8, "max_train": 40, "langs": "de"})
    [said] = [note for note in check_inputs(mini) if "max_length" in note]
    assert "train in en 40 of 40 (100.0%)" in said and "test in de 500 of 500 (100.0%)" in said


@pytest.mark.parametrize("method, kind", [("finetune", "bert"), ("finetune", "xlmr"), ("prompt", "bert")])
def test_truncation_is_exact(method, kind):
    rows, form = toy.rows("toy3", 40), ByCloze if method == "prompt" else TextEncoder
    text = TextSettings(toy.tokenizer(kind), max_length=10**4)
    lengths = form(toy.TASKS["toy3"], rows, text, "").tokens().lengths
    limit = int(np.median(lengths))
    found = form(toy.TASKS["toy3"], rows, replace(text, max_length=limit), "").truncated()
    assert found == (lengths > limit).sum() and 0 < found < 40


def test_examples_that_a_preset_leaves_out_are_counted(shop):
    given = shop(train=1300)
    assert "max_train of preset mini: 1,200 of 1,300 training examples of shop" in check_inputs(resolved(given))
    assert not [n for n in check_inputs(resolved(given | {"max_train": 20})) if "max_train" in n]  # asked for


def test_a_sample_of_its_own_is_another_training_and_the_default_is_in_no_key():
    "Another draw of `max_train` examples; without one key and record are those of older runs"
    given = {"task": "pawsx", "method": "finetune", "preset": "mini", "max_train": 48}
    jobs = [settle(check(given | more)) for more in ({}, {"sample": 0}, {"sample": 1})]
    data = [Data(job) for job in jobs]
    ids = [tuple(d.rows(d.target, "train")["id"][:]) for d in data]
    assert len(set(ids)) == 3 and all(len(x) == 48 for x in ids)
    assert data[0].pools == data[1].pools == data[2].pools, "drawn from the same examples"
    assert ["sample" in resolve_job(job).config for job in jobs] == [False, True, True]
    assert len({identity(job) for job in jobs}) == 3
