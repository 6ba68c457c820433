"""Tasks of single texts: tokens, prompts, every method, stage 1 beside pairs, export, predictions, messages."""

import re

import numpy as np
import pandas as pd
import pytest
import toy
from transformers import pipeline

from macular.core import permutation
from macular.data.readers import as_dataset, read_texts, texts_of
from macular.data.sources import File, Folder, Hub
from macular.data.tasks import Task, find, load, not_read, tasks
from macular.deploy.huggingface import export, predict_texts
from macular.exceptions import DataError, ParameterError
from macular.jobs.plan import plan
from macular.results.records import job_of
from macular.text.code_switch import CodeSwitch
from macular.text.encode import ByCloze, ChunkEncoder, TextEncoder, TextSettings, agree
from macular.train.config import check, fill
from macular.train.inputs import Data, digest
from macular.train.run import run

RECORD = """name = "topics"
labels = ["food", "animals", "places"]
langs = ["en", "de", "pt-BR"]
words = ["red", "old", "small"]

[source]
files = "{split}.{lang}.csv"
text = "sentence"
label = "topic"
"""
NOUNS = {
    "food": ("water", "wine", "water and wine"),
    "animals": ("dog", "cat", "dog and cat"),
    "places": ("house", "garden", "house and garden"),
}


def sentences(n, seed):
    "Single texts with their topic"
    rows, labels = [], list(NOUNS)
    for i in range(n):
        label = labels[i % 3]
        noun = NOUNS[label][int(permutation(3, seed, i)[0])]
        rows.append({"sentence": f"The {('old', 'small', 'red')[i % 5 % 3]} {noun} is not here.", "topic": label})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A task of single texts in files, its dictionaries and near-synonyms"
    folder = tmp_path_factory.mktemp("topics")
    (folder / "topics.toml").write_text(RECORD)
    for split, n in (("train", 36), ("dev", 12), ("test", 12)):
        for lang in ("en", "de", "pt-BR") if split != "train" else ("en",):
            sentences(n, f"{split} {lang}").to_csv(folder / f"{split}.{lang}.csv", index=False)
    (folder / "words").mkdir()
    for lang in ("de", "pt-BR"):
        lines = [f"{word} {lang[:2]}{word}\n" for word in "old small red water wine dog cat house garden here".split()]
        (folder / "words" / f"en-{lang}.txt").write_text("".join(lines))
    (folder / "synonyms.txt").write_text("old aged\nsmall little\nred crimson\n")
    return folder


@pytest.fixture(scope="module")
def topics(folder):
    return find(folder / "topics.toml")


def job(folder, method, **more):
    given = {"task": str(folder / "topics.toml"), "method": method, "preset": "mini", "rounds": 1, "batch_size": 12}
    given |= {"backbone": str(toy.backbone("xlmr")), "lexicon_dir": str(folder / "words"), "max_length": 16}
    return check(given | more)


def done(folder, method, out, **more):
    return run(job(folder, method, out=str(out), **more), lambda event, facts: None)


# ------------------------------------------------------------------ records and files


def test_a_record_of_one_text_needs_no_fields(topics):
    found = load(topics, "test", "pt-BR")
    assert topics.fields == ("text",) and found.column_names == ["id", "text_a", "label"] and len(found) == 12
    assert texts_of(found) == [sentences(12, "test pt-BR")["sentence"].tolist()]


def test_names_and_columns_must_agree():
    one, two = File("{split}.tsv", "a"), File("{split}.tsv", "a", "b")
    with pytest.raises(ParameterError, match=r"fields names 2 \(x, y\), and its source has columns for 1"):
        Task("t", ("no", "yes"), ("en",), fields=("x", "y"), source=one)
    with pytest.raises(ParameterError, match=r"fields names 1 \(x\), and its source has columns for 2"):
        Task("t", ("no", "yes"), ("en",), fields=("x",), source=two)
    with pytest.raises(ParameterError, match="one or two texts, not 3"):
        Task("t", ("no", "yes"), ("en",), fields=("x", "y", "z"))
    assert Task("t", ("no", "yes"), ("en",), source=two).fields == ("text_a", "text_b")


def test_a_single_text_is_another_content_than_a_pair():
    one = as_dataset(("no", "yes"), {"id": ["0"], "text_a": ["a dog"], "label": [0]})
    two = as_dataset(("no", "yes"), {"id": ["0"], "text_a": ["a dog"], "text_b": [""], "label": [0]})
    assert digest(one) != digest(two)


def test_codes_of_languages_in_paths_and_columns(tmp_path):
    rows = "text\tlabel\tlocale\nein Hund\tyes\tde_DE\nkein Hund\tno\tde_DE\na dog\tyes\ten_US\nno dog\tno\ten_US\n"
    (tmp_path / "deu_Latn").mkdir()
    (tmp_path / "deu_Latn" / "test.tsv").write_text(rows)
    codes = {"de": "deu_Latn"}
    files = File({"test": "{lang}/test.tsv"}, "text", codes=codes, folder=str(tmp_path))
    column = File({"test": "deu_Latn/test.tsv"}, "text", codes={"de": "de_DE"}, lang="locale", folder=str(tmp_path))
    task = Task("t", ("no", "yes"), ("de",), source=files)
    assert len(load(task, "test", "de")) == 4 and not_read(task, "test") == []
    task = Task("t", ("no", "yes"), ("de",), source=column)
    assert load(task, "test", "de")["text_a"][:] == ["ein Hund", "kein Hund"]
    assert not_read(task, "test") == [
        "test.tsv: 2 of 4 rows are not read; their locale is 'en_US' (2 rows; did you mean 'en'?)"
    ]


def test_sib200_and_xsid_are_known(shared):
    source = Folder(str(shared))
    assert [len(source.langs(tasks[name], "test")) for name in ("sib200", "xsid")] == [17, 12]
    assert [len(load(name, "train", source=source)) for name in ("sib200", "xsid")] == [701, 35_798]
    assert len(load("xsid", "test", "ja", source)) == 250 and len(load("sib200", "test", "sw", source)) == 204


def test_the_hub_has_sib200_under_flores_codes():
    assert Hub().name(tasks["sib200"], "test", "zh") == "data/zho_Hans/test.tsv"
    assert set(tasks["sib200"].langs) == set(Hub().layout(tasks["sib200"], "test").codes)


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("length", [5, 9, 64])
def test_tokens_are_the_tokenizers_own(topics, kind, length):
    tokenizer, rows = toy.tokenizer(kind), load(topics, "train")
    text = TextSettings(tokenizer, toy.LEXICON, CodeSwitch(("de",), word=1.0), max_length=length)
    plain, chunks = TextEncoder(topics, rows, text), ChunkEncoder(topics, rows, text)
    wanted = tokenizer(rows["text_a"][:], truncation=True, max_length=length)["input_ids"]
    for tokens in (plain.tokens(), chunks.tokens()):
        assert np.split(tokens.ids, tokens.starts[1:-1])[7].tolist() == wanted[7]
        assert tokens.ids.tolist() == sum(wanted, [])
    assert agree(plain.switched(0)[0], chunks.switched(0)[0]) and plain.switched(0)[1] == chunks.switched(0)[1]
    assert not agree(plain.tokens(), plain.switched(0)[0])


def test_the_prompt_of_a_single_text(topics):
    tokenizer = toy.tokenizer("bert")
    rows = load(topics, "dev")
    tokens = ByCloze(topics, rows, TextSettings(tokenizer, max_length=9)).tokens()
    first = tokenizer.convert_ids_to_tokens(tokens.ids[: tokens.starts[1]])
    assert first[:2] == [tokenizer.cls_token, tokenizer.mask_token] and first[-1] == tokenizer.sep_token
    words = tokenizer.tokenize(rows["text_a"][0])
    colon = [":"] * (":" in tokenizer.get_vocab())
    assert first[2:-1] == (colon + words)[: 9 - 3] and (tokens.at == 1).all() and tokens.lengths.max() <= 9


# ------------------------------------------------------------------ jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,more",
    [
        ("finetune", {}),
        ("cosda_ml", {}),
        ("rs_da", {"synonyms": "synonyms.txt"}),
        ("prompt", {}),
        ("macular", {"stage1": ["topics", "pawsx", "xnli"]}),
        ("xtune", {}),
        ("finetune_x2", {}),
    ],
)
def test_every_method_trains_and_scores_single_texts(folder, tmp_path, method, more):
    if "synonyms" in more:
        more = {"synonyms": str(folder / more["synonyms"])}
    if method == "macular":
        more["max_train"] = 36
    result = done(folder, method, tmp_path, **more)
    assert sorted(result.values["accuracy"]["topics"]) == ["de", "en", "pt-BR"]
    assert len(result.predictions) == 36 and result.predictions.filter(like="p_").sum(axis=1).round(4).eq(1).all()


@pytest.mark.slow
def test_a_model_of_single_texts_is_taken_away(folder, tmp_path, topics):
    result = done(folder, "cosda_ml", tmp_path / "runs", rounds=2)
    taken = export(result, tmp_path / "model")
    frame = pd.DataFrame({"text": load(topics, "test", "de")["text_a"][:]})
    wanted = result.predictions.query("language == 'de'")["p_animals"].to_numpy()
    for place in (result.folder, taken):
        assert np.abs(predict_texts(frame, place)["p_animals"] - wanted).max() < 1e-5
    [scores] = pipeline("text-classification", str(taken), top_k=None)([frame["text"][0]])
    assert abs({s["label"]: s["score"] for s in scores}["animals"] - wanted[0]) < 1e-5
    card = (taken / "README.md").read_text()
    assert "Classifies a text (text) as one of" in card and "text_pair" not in card
    with pytest.raises(ParameterError, match=r"reads 1 text \(text\), and 2 columns are named"):
        predict_texts(frame.assign(other="x"), result.folder, ("text", "other"))


@pytest.mark.parametrize("name,content", [("a.csv", "id,text\n1,a dog\n"), ("a.txt", "a dog\n")])
def test_a_file_of_single_texts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_texts(tmp_path / name).to_dict("list") == {"text": ["a dog"]}


def test_every_label_is_in_a_sample(folder):
    "However small; and a sample that has them all is the one drawn"
    data = Data(job(folder, "finetune", max_train=3))
    assert sorted(data.peek(data.target, "train", "en")["label"]) == [0, 1, 2]
    whole = load(data.target, "train")
    labels = np.array(whole["label"][:])
    from macular.core import number
    from macular.train.inputs import _sample

    order = permutation(len(labels), "max_train", number("topics"))
    assert len(set(labels[order[:20]])) == 3
    assert _sample(labels, 20, "max_train", number("topics")).tolist() == sorted(order[:20])


def test_a_sample_smaller_than_the_labels_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="max_train=2 leaves too few examples: topics train in en has none of"):
        done(folder, "finetune", tmp_path, max_train=2)


# ------------------------------------------------------------------ without further parameters


def test_own_data_have_a_preset_a_method_and_steps_of_their_own(folder, tmp_path):
    "`quick` on every machine; code-switching where there is a dictionary; at least 300 steps"
    given = {"task": str(folder / "topics.toml"), "backbone": str(toy.backbone("xlmr"))}
    alone = fill(check(given))
    switched = fill(check(given | {"lexicon_dir": str(folder / "words")}))
    assert (alone.preset, alone.method, switched.preset, switched.method) == ("quick", "finetune", "quick", "cosda_ml")
    assert alone.rounds == 150 == fill(alone).rounds  # of 36 examples, two batches a round
    assert fill(check(given | {"rounds": 2})).rounds == 2 and fill(check(given | {"batch_size": 4})).rounds == 34
    assert fill(check({"task": "xnli"})).method == "macular" and fill(check({"task": "xnli"})).preset == "mini"
    [job] = plan([given])
    assert (job.preset, job.method) == ("quick", "finetune")
    with pytest.raises(ParameterError, match="knows only the mini world's words, and the data are your own"):
        check({"task": given["task"], "preset": "mini"})
    assert check({"task": given["task"], "preset": "mini", "backbone": "mini-bert"}).backbone == "mini-bert"


@pytest.mark.slow
def test_a_run_that_hardly_learned_says_so_first(folder, tmp_path):
    result = done(folder, "finetune", tmp_path, learning_rate=1e-9)
    assert re.match(r"it has hardly learned: \d+\.\d % on en dev, where always saying '", result.values["notes"][0])


@pytest.mark.slow
def test_views_show_single_texts(folder, tmp_path):
    from macular.ui.error_browser import errors
    from macular.ui.playground import playground, show_batch

    result = done(folder, "cosda_ml", tmp_path)
    assert job_of(result.folder).task.endswith("topics.toml")
    for view in (
        playground(run=result.folder),
        show_batch(run=result.folder, lang="de"),
        errors(result.folder, kind="all"),
    ):
        assert "is not here" in view._repr_mimebundle_()["text/html"]
