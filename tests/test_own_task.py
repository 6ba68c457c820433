"""A task of one's own: from tables and a record through papermill to a folder that transformers loads; from German;
and what a builder gets wrong."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from macular.cli import main
from macular.data.check import SourceWords, _cutter, check_data
from macular.data.lexicon import Lexicon
from macular.data.mini_world import Mini, lexicon
from macular.data.tasks import find, load
from macular.deploy.huggingface import export, predict_texts
from macular.exceptions import DataError, ParameterError, SetupError
from macular.text.code_switch import CodeSwitch
from macular.train.checks import check_inputs
from macular.train.config import check
from macular.train.resolve import resolve_job, settle
from macular.train.run import preview, run

pytestmark = pytest.mark.slow

RECORD = """
name = "shop"
labels = ["misses", "fits"]
langs = ["en", "de", "fr"]
fields = ["search", "offer"]

[source]
files = "{split}.{lang}.csv"
text_a = "search"
text_b = "offer"
label = "verdict"
"""
GERMAN = """
name = "laden"
labels = ["passt nicht", "passt"]
langs = ["en"]
source_lang = "de"
neighbour = []

[source]
files = {train = "train.de.csv", test = "test.{lang}.csv"}
separator = ";"
held_out = 0.2
text_a = "suche"
text_b = "angebot"
label = "urteil"
labels = {"0" = "passt nicht", "1" = "passt"}
licence = "ours"
"""


def table(path, split, lang, n, header, spell, separator=","):  # noqa: PLR0913 — a file's columns
    "Rows of the mini world as a table of one's own"
    with open(path, "w", newline="", encoding="utf-8") as f:
        write = csv.writer(f, delimiter=separator)
        write.writerow(header)
        write.writerows(
            [r["text_a"], r["text_b"], spell[r["label"]]]
            for r in load("qadsm", split, lang, source=Mini()).select(range(n))
        )


@pytest.fixture
def shop(tmp_path):
    for split, lang, n in (("train", "en", 64), ("dev", "en", 24), ("test", "de", 24)):
        table(tmp_path / f"{split}.{lang}.csv", split, lang, n, ("search", "offer", "verdict"), ("misses", "fits"))
    (tmp_path / "shop.toml").write_text(RECORD)
    return tmp_path


@pytest.fixture
def german(tmp_path):
    "German training rows; the English of the mini world's test rows; a dictionary the other way round"
    for split, lang, n in (("test", "de", 80), ("dev", "en", 24)):
        name = "train.de.csv" if split == "test" else "test.en.csv"
        table(tmp_path / name, split, lang, n, ("suche", "angebot", "urteil"), ("0", "1"), ";")
    (tmp_path / "laden.toml").write_text(GERMAN)
    words = tmp_path / "words"
    words.mkdir()
    pairs = {(t, w) for w, found in lexicon()["de"].items() for t in found}
    (words / "de-en.txt").write_text("".join(f"{a}\t{b}\n" for a, b in sorted(pairs)), encoding="utf-8")
    return tmp_path


def given(place, name, **more):
    return check(
        {"task": str(place / f"{name}.toml"), "preset": "mini", "backbone": "mini-xlmr", "rounds": 1}
        | {"out": str(place / "runs")}
        | more
    )


def test_from_a_record_to_a_pipeline(shop, capfd):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "nbs/train.ipynb",
            str(shop / "report.ipynb"),
            "-p",
            "task",
            str(shop / "shop.toml"),
            "-p",
            "method",
            "finetune",
            "-p",
            "preset",
            "mini",
            "-p",
            "backbone",
            "mini-xlmr",
            "-p",
            "rounds",
            "1",
            "-p",
            "out",
            str(shop / "runs"),
            "--log-output",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = next(
        line for line in (done.stdout + done.stderr).splitlines() if line.startswith("export    macular export ")
    )
    words = told.split()[2:]
    assert main([*words[:2], str(shop / "model")]) == 0
    assert 'pipeline("text-classification"' in capfd.readouterr().out
    from transformers import pipeline

    from macular.deploy.huggingface import predict

    rows = pd.read_csv(shop / "test.de.csv")
    said = pipeline("text-classification", str(shop / "model"), truncation=True)(
        [{"text": rows["search"][0], "text_pair": rows["offer"][0]}]
    )
    predicted = (
        pd.read_parquet(next((shop / "runs").glob("*/predictions.parquet")))
        .query("language == 'de'")["prediction"]
        .tolist()
    )
    assert (
        said[0]["label"] == predicted[0]
        and predict(rows, shop / "model", ("search", "offer"))["prediction"].tolist() == predicted
    )
    assert "# Fine-tuning: shop" in (shop / "model" / "README.md").read_text("utf-8")


def test_german_is_the_source(german):
    task = find(german / "laden.toml")
    train, dev = load(task, "train"), load(task, "dev")
    assert (
        len(train) + len(dev) == 80
        and 0 < len(dev) < 40
        and not set(train["text_a"]) & set(dev["text_a"])
        and task.source.langs(task, "dev") == ("de",)
    )
    report = check_data(lexicon_dir=german / "words", task=str(german / "laden.toml"))
    assert (
        report.problems == []
        and [row["language"] for row in report.dictionaries] == ["en"]
        and report.dictionaries[0]["changed"] > 0.1
    )
    result = run(
        given(german, "laden", method="cosda_ml", lexicon_dir=str(german / "words")), lambda event, facts: None
    )
    assert (
        list(result.accuracy["laden"]) == ["en"]
        and result.values["split"] == "test"
        and set(result.predictions["label"]) == {"passt nicht", "passt"}
    )
    [switched] = [rates["laden"] for t in result.values["trainings"].values() if (rates := t["switch_rates"])]
    assert switched["realised"] > 0.1 and "only the words of the mini world" in " ".join(result.values["notes"])


def test_tasks_of_two_source_languages_are_refused_before_anything_is_trained(german):
    job = given(german, "laden", method="macular", lexicon_dir=str(german / "words"))
    with pytest.raises(DataError, match="must have one source language"):
        run(job)
    assert not (german / "runs" / "trainings").exists()


def test_a_dictionary_the_wrong_way_round_is_named(german):
    (german / "words" / "de-en.txt").rename(german / "words" / "en-de.txt")
    with pytest.raises(DataError, match="no de-xx.txt .* only en-de.txt"):
        preview(given(german, "laden", method="cosda_ml", lexicon_dir=str(german / "words")))


def test_a_label_in_a_test_file_is_told_before_training(shop, capsys):
    path = shop / "test.de.csv"
    path.write_text(path.read_text("utf-8").replace(",fits\n", ",Fits\n", 1), encoding="utf-8")
    with pytest.raises(DataError, match="Did you mean 'fits'"):
        run(given(shop, "shop", method="finetune"))
    assert (
        not (shop / "runs" / "trainings").exists() and main(["data", "check", "--task", str(shop / "shop.toml")]) == 3
    )
    assert "test: test.de.csv: 1 of 24 rows" in capsys.readouterr().out


def test_without_dev_and_test_rows_the_way_out_is_said(shop):
    for name in ("dev.en.csv", "test.de.csv"):
        (shop / name).unlink()
    with pytest.raises(DataError, match="held_out = 0.1"):
        preview(given(shop, "shop", method="finetune"))
    (shop / "shop.toml").write_text(RECORD + "held_out = 0.25\n")
    assert preview(given(shop, "shop", method="finetune"))[0]["rows"] < 64


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('files = "{split}.{lang}.csv"', 'files = "train.en.csv"', "one file cannot be train, dev and test at once"),
        ('label = "verdict"', "label = 3", "label is '3'; a text is needed"),
        ('label = "verdict"', 'label = "verdict"\nlabels = ["misses", "fits"]', "spelling = label name"),
        ('label = "verdict"', 'label = "verdict"\nseparator = ";;"', "one character"),
        ('label = "verdict"', 'label = "verdict"\nheld_out = 1.5', "held_out is 1.5"),
        ('text_a = "search"', "text_a = 1", "a column's name"),
        ('text_b = "offer"', 'text_b = ""', "text_b is ''; the name of the column with the text is needed"),
        ('text_b = "offer"', "text_b = []", r"text_b is '\[\]'; the name of the column with the text is needed"),
        ('text_b = "offer"', 'text_b = ["offer", ""]', "the name of the column with the text is needed"),
        ('label = "verdict"', 'label = ""', "column with the labels"),
        (
            'files = "{split}.{lang}.csv"',
            'files = {train = ["a.csv", "b.csv"]}',
            "files is .*of train one path is needed",
        ),
        ('label = "verdict"', 'label = "verdict"\nrows = {train = ["2"]}', "rows is .*how many of each label"),
        ('label = "verdict"', 'label = "verdict"\nrows = 64', "rows is '64'; a table is needed"),
        ("[source]", 'source = "x"\n[other]', "write its fields below"),
        ('labels = ["misses", "fits"]', "labels = 2", "a list of names is needed"),
        ('name = "shop"', "name = 5", "is 5; a text is needed"),
    ],
)
def test_a_record_with_a_mistake(shop, old, new, message):
    assert old in RECORD
    (shop / "shop.toml").write_text(RECORD.replace(old, new, 1))
    with pytest.raises(ParameterError, match=message) as raised:
        find(shop / "shop.toml")
    assert "shop.toml" in str(raised.value)


def test_rows_of_each_label_are_a_list(shop):
    one = (shop / "train.en.csv").read_text("utf-8").count("fits")
    (shop / "shop.toml").write_text(RECORD + f"rows = {{train = [{64 - one}, {one}]}}\n")
    assert len(load(find(shop / "shop.toml"), "train")) == 64 and find(shop / "shop.toml").source.size("train") == 64
    (shop / "shop.toml").write_text(RECORD + f"rows = {{train = [{63 - one}, {one + 1}]}}\n")
    with pytest.raises(DataError, match="were published; it is another file"):
        load(find(shop / "shop.toml"), "train")


def test_a_folder_at_home(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (shop / "records").mkdir()
    (shop / "records" / "shop.toml").write_text(RECORD + 'folder = "~"\n')
    assert len(load(find(shop / "records" / "shop.toml"), "train")) == 64


def test_a_column_of_languages_between_semicolons(shop):
    text = "search;offer;verdict;language\n" + "".join(
        f"a {i};b;{('misses', 'fits')[i % 2]};{lang}\n" for lang in ("en", "de") for i in range(4)
    )
    for split in ("train", "test"):
        (shop / f"{split}.csv").write_text(text)
    (shop / "shop.toml").write_text(
        RECORD.replace("{split}.{lang}.csv", "{split}.csv") + 'lang = "language"\nseparator = ";"\n'
    )
    task = find(shop / "shop.toml")
    assert (
        task.source.langs(task, "test") == ("en", "de")
        and task.source.langs(task, "train") == ("en",)
        and len(load(task, "test", "de")) == 4
    )
    found = check_data(lexicon_dir=shop, task=str(shop / "shop.toml"))
    assert [row["rows"] for row in found.data] == ["4", "missing", "4"] and not found.problems


def test_a_column_of_languages_in_a_file_of_each(shop):
    "German rows are in the German file alone; the English file does not speak for it, nor the French one for itself"
    for lang, inside in (("en", "en"), ("de", "de"), ("fr", "en")):
        (shop / f"test.{lang}.csv").write_text(
            "search,offer,verdict,language\n"
            + "".join(f"a {i},b,{('misses', 'fits')[i % 2]},{inside}\n" for i in range(4))
        )
    (shop / "shop.toml").write_text(RECORD + 'lang = "language"\n')
    task = find(shop / "shop.toml")
    assert task.source.langs(task, "test") == ("en", "de")


def test_semicolons_are_recognised(shop):
    path = shop / "train.en.csv"
    path.write_text(path.read_text("utf-8").replace(",", ";"), encoding="utf-8")
    with pytest.raises(DataError, match='separator = ";"'):
        load(find(shop / "shop.toml"), "train")


def test_german_questions_and_english_ones(shared):
    "The real files: training rows in German, test rows in English, of two sources with the same form"
    from macular.data.sources import File
    from macular.data.tasks import Task

    source = File(
        {"train": "qam.train.de.tsv", "test": "qnli.dev.{lang}.tsv"},
        "question",
        "passage",
        labels={"0": "no", "1": "yes"},
        folder=str(shared / "own"),
        held_out=0.1,
    )
    task = Task("qam-de", labels=("no", "yes"), langs=("en",), source_lang="de", source=source)
    assert task.source.langs(task, "test") == ("en",) and len(load(task, "test", "en")) == 5463
    train, dev = load(task, "train"), load(task, "dev")
    assert len(train) + len(dev) == 9000 and 800 < len(dev) < 1000


def test_a_tasks_measure_selects_the_round_and_heads_its_table(shop, capsys):
    "And is part of the key only where it is not accuracy"
    from macular.data.tasks import scored
    from macular.store import read_json

    (shop / "shop.toml").write_text('measure = "macro_f1"\n' + RECORD)
    given = {"method": "finetune", "preset": "mini", "backbone": "mini-xlmr", "rounds": 2, "out": str(shop / "runs")}
    lines = []
    done = run(
        check(given | {"task": str(shop / "shop.toml")}),
        watch=lambda event, facts: lines.extend(facts["measures"].items() if event == "round" else ()),
    )
    assert lines == [("shop", "macro-F1")] * 2
    found = read_json(done.folder / "result.json")
    assert found["measure"] == "macro_f1" and found["macro_f1"]["en_dev"] == scored(done.predictions, "macro_f1")
    assert done.scores == found["macro_f1"]["en_dev"] != done.accuracy["shop"]
    training = found["trainings"]["finetune"]
    devs = [d["shop"] for d in training["dev"]]
    assert devs[training["round"] - 1] == max(devs)
    if max(devs) < 30:
        assert any("hardly learned" in n and "% macro-F1 on en dev" in n for n in found["notes"]), "majority: a third"
    assert main(["table", str(done.folder)]) == 0
    mean = sum(done.scores.values()) / len(done.scores)
    shown = capsys.readouterr().out
    assert f"| {mean:.1f} |" in shown.replace(" [1 of 1 collapsed]", "") and "*Macro-F1 in percent" in shown
    assert main(["table", str(done.folder), "--measure", "accuracy"]) == 0
    assert "*Accuracy in percent" in capsys.readouterr().out
    assert main(["table", str(done.folder), "--measure", "f1"]) == 2
    card = (export(done, shop / "model") / "README.md").read_text("utf-8")
    assert f"Macro-F1 in percent on test; the mean over {len(done.scores)} languages is {mean:.1f}." in card
    assert "- type: f1" in card and "| macro-F1 | accuracy |" in card
    (shop / "shop.toml").write_text(RECORD)
    other = run(check(given | {"task": str(shop / "shop.toml")}), watch=lambda event, facts: None)
    assert other.values["trainings"]["finetune"]["key"] != training["key"] and other.values["measure"] == "accuracy"


def test_examples_that_are_cut_are_counted_before_a_training(shop, capsys):
    "By the tokenizer of a backbone; without one the report says how to get the numbers"
    from transformers import AutoTokenizer

    from macular.data.backbones import backbone_folder
    from macular.data.readers import texts_of

    (shop / "shop.toml").write_text("max_length = 9\n" + RECORD)
    task, count = find(shop / "shop.toml"), AutoTokenizer.from_pretrained(backbone_folder("mini-xlmr"))
    places = []
    for split in ("train", "dev", "test"):
        for lang in task.source.langs(task, split):
            pairs = list(zip(*texts_of(load(task, split, lang)), strict=True))
            if n := sum(len(count(*pair)["input_ids"]) > 9 for pair in pairs):
                places.append(f"{split} in {lang} {n} of {len(pairs)} ({n / len(pairs):.1%})")
    given = ["data", "check", "--task", str(shop / "shop.toml"), "--lexicon-dir", str(shop)]
    assert places and main([*given, "--backbone", "mini-xlmr"]) == 0
    assert f"examples of shop cut at 9 tokens (max_length): {', '.join(places)}" in capsys.readouterr().out
    assert main(given) == 0 and "--backbone DIR counts them" in capsys.readouterr().out


def test_macro_f1_is_recommended_for_unequal_labels(shop):
    lines = (shop / "test.de.csv").read_text().splitlines()
    few = [x for x in lines[1:] if x.endswith(",misses")][:3]
    (shop / "test.de.csv").write_text("\n".join([lines[0], *few, *[x for x in lines if x.endswith(",fits")]]) + "\n")
    given = {"method": "finetune", "preset": "mini", "backbone": "mini-xlmr", "rounds": 1}
    given["task"] = str(shop / "shop.toml")
    done = run(check(given | {"out": str(shop / "runs")}), watch=lambda event, facts: None)
    assert any("have the label 'fits': macro-F1 is recommended" in note for note in done.values["notes"])


# a source language without blanks between words

SENTENCES = {  # subjects, ends; words separated by blanks
    "ja": (["猫 が", "犬 が", "先生 が", "友達 が"], ["走っ て います", "寝 て います", "水 を 飲む", "本 を 読む"]),
    "zh": (["小 猫", "小 狗", "老师", "我 的 朋友"], ["正在 跑步", "正在 睡觉", "喜欢 喝 水", "喜欢 看 书"]),
    "th": (["แมว", "สุนัข", "ครู ของ ฉัน", "เพื่อน ของ ฉัน"], ["กำลัง วิ่ง อยู่", "กำลัง นอน หลับ", "ดื่ม น้ำ เย็น", "อ่าน หนังสือ ใหม่"]),
    "lo": (["ແມວ", "ໝາ", "ຄູ ຂອງ ຂ້ອຍ", "ໝູ່ ຂອງ ຂ້ອຍ"], ["ກຳລັງ ແລ່ນ ຢູ່", "ກຳລັງ ນອນ ຫຼັບ", "ດື່ມ ນ້ຳ ເຢັນ", "ອ່ານ ປຶ້ມ ໃໝ່"]),
    "km": (["ឆ្មា", "ឆ្កែ", "គ្រូ របស់ ខ្ញុំ", "មិត្ត របស់ ខ្ញុំ"], ["កំពុង រត់ លេង", "កំពុង ដេក លក់", "ផឹក ទឹក ត្រជាក់", "អាន សៀវភៅ ថ្មី"]),
    "my": (["ကြောင်", "ခွေး", "ကျွန်တော့် ဆရာ", "ကျွန်တော့် သူငယ်ချင်း"], ["ပြေး နေ သည်", "အိပ် နေ သည်", "ရေ သောက် သည်", "စာအုပ် ဖတ် သည်"]),
}


def without_blanks(place, lang, segmenter="", between=""):
    "A task of one's own whose source language has no blanks between words, and a dictionary of its first words"
    subjects, ends = SENTENCES[lang]
    texts = [f"{a} {b}".replace(" ", between) + ("。" if lang in ("ja", "zh") else "") for a in subjects for b in ends]
    for split in ("train", "dev", "test"):
        rows = [f"{a}\t{texts[(i + i % 2) % 16]}\t{('fits', 'misses')[i % 2]}" for i, a in enumerate(texts)]
        (place / f"{split}.{lang}.tsv").write_text("\n".join(["search\toffer\tverdict", *rows, ""]), "utf-8")
    words = place / "words"
    words.mkdir()
    pairs = dict.fromkeys(word for part in (*subjects, *ends) for word in part.split())
    lines = [f"{word}\tword{i}" for i, word in enumerate(pairs)]
    (words / f"{lang}-en.txt").write_text("\n".join([*lines, ""]), "utf-8")
    record = f'name = "shop"\nlabels = ["misses", "fits"]\nlangs = ["en"]\nsource_lang = "{lang}"\n'
    record += f'segmenter = "{segmenter}"\n' if segmenter else ""
    record += '[source]\nfiles = "{split}.{lang}.tsv"\ntext_a = "search"\ntext_b = "offer"\nlabel = "verdict"\n'
    (place / "shop.toml").write_text(record, "utf-8")
    job = {"task": str(place / "shop.toml"), "method": "cosda_ml", "preset": "mini", "backbone": "mini-bert"}
    return job | {"lexicon_dir": str(words), "rounds": 1, "out": str(place / "runs")}


def checked(job):
    return check_inputs(resolve_job(settle(check(job))))


@pytest.mark.parametrize("lang", SENTENCES)
def test_a_source_language_without_blanks_is_refused_with_that_reason(tmp_path, lang, capsys):
    job = without_blanks(tmp_path, lang)
    assert main(["data", "check", "--task", job["task"], "--lexicon-dir", job["lexicon_dir"]]) == 3
    out = capsys.readouterr().out
    said = f"the texts of shop in '{lang}' have no blanks between words"
    assert said in out and "reversed" not in out and ("macular[zh]" in out) == (lang == "zh")
    with pytest.raises(DataError, match=said):
        checked(job)
    assert checked(job | {"method": "finetune"}) is not None  # which switches no words


@pytest.mark.parametrize("lang", SENTENCES)
def test_separated_words_are_accepted(tmp_path, lang):
    job = without_blanks(tmp_path, lang, between=" ")
    assert checked(job) is not None
    [row] = check_data(task=job["task"], lexicon_dir=job["lexicon_dir"]).dictionaries
    assert row["covered"] > 0.95


def test_without_a_dictionary_a_language_without_blanks_is_no_problem_of_the_data(tmp_path):
    job = without_blanks(tmp_path, "ja")
    assert check_data(task=job["task"], lexicon_dir=tmp_path).problems == []


class Jieba:
    "Stand-in for the package, which separates the words of `SENTENCES`"

    setLogLevel = staticmethod(lambda level: None)

    class Tokenizer:
        def initialize(self):
            (Path(self.tmp_dir) / "cache").write_text("")

        def lcut(self, text):
            words = sorted({w for part in sum(SENTENCES["zh"], []) for w in part.split()}, key=len, reverse=True)
            return re.findall("|".join([*words, "."]), text)


@pytest.fixture(params=["stand-in", "jieba"])
def jieba(request, monkeypatch):
    "jieba, or a stand-in for it"
    _cutter.cache_clear()
    if request.param == "jieba":
        pytest.importorskip("jieba")
    else:
        monkeypatch.setitem(sys.modules, "jieba", Jieba)
        monkeypatch.setattr("macular.data.check.version", lambda name: "0")
    yield
    _cutter.cache_clear()


def test_chinese_as_the_source_language(tmp_path, jieba):
    job = without_blanks(tmp_path, "zh", segmenter="jieba")
    found = check_data(task=job["task"], lexicon_dir=job["lexicon_dir"])
    assert found.problems == [] and found.dictionaries[0]["covered"] > 0.7
    result = run(check(job), lambda event, facts: None)
    rates = result.values["trainings"]["cosda_ml"]["switch_rates"]["shop"]
    assert 0.3 < rates["realised"] < 0.6
    text = "小猫正在睡觉。"
    lexicon = SourceWords(find(job["task"])).lexicon(Lexicon.read(job["lexicon_dir"], ["en"], source="zh"))
    [switched] = CodeSwitch(("en",), word=1.0)([text], ["a"], lexicon)
    assert switched.original == text and switched.text.endswith("。") and switched.changed >= 2
    words = {lexicon["en"][word][0] for word in ("正在", "睡觉")}
    assert words <= set(switched.text.rstrip("。").split()), "replaced words are separated by blanks"
    assert lexicon.digest != Lexicon.read(job["lexicon_dir"], ["en"], source="zh").digest
    answers = predict_texts(pd.DataFrame({"text_a": [text], "text_b": [text]}), result.folder)
    model = predict_texts(pd.DataFrame({"text_a": [text], "text_b": [text]}), export(result, tmp_path / "model"))
    assert abs(answers["p_fits"] - model["p_fits"]).max() < 1e-5  # texts are read as they are


def test_a_missing_segmenter_says_how_to_get_it(tmp_path, monkeypatch):
    _cutter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(SetupError, match="pip install 'macular\\[zh\\]'"):
        checked(without_blanks(tmp_path, "zh", segmenter="jieba"))


@pytest.mark.parametrize(
    "lang, segmenter, said",
    [("ja", "jieba", "separates Chinese words; the source language is 'ja'"), ("zh", "jeiba", "Did you mean 'jieba'")],
)
def test_a_segmenter_is_for_its_language(tmp_path, lang, segmenter, said):
    with pytest.raises(ParameterError, match=said):
        find(without_blanks(tmp_path, lang, segmenter)["task"])
