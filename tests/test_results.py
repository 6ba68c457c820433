"""The paper's numbers: complete, sourced, averaged over what they average. Ours: records that round-trip. Others':
read, or refused for people."""

import json
import os
from dataclasses import FrozenInstanceError, replace
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macular.core import key
from macular.data.mini_world import Mini
from macular.data.tasks import load
from macular.exceptions import DataError, ParameterError
from macular.results.paper import _read_averages, _read_blocks, average, paper, published, recomputed, sources
from macular.results.predictions import file_format, read, runs
from macular.results.records import Record, from_dict, from_lines, located, marked, record, save
from macular.results.statistics import same_design
from macular.results.tables import TableOptions, overview
from macular.store import append

LANGS = {
    "xnli": "en ar bg de el es fr hi ru sw th tr ur vi zh",
    "pawsx": "en de es fr zh ja ko",
    "qam": "en de fr",
    "qadsm": "en de fr",
}
CELLS = [c for name, cells in paper.items() if name != "table1" for c in cells]


@pytest.mark.parametrize("task", LANGS)
@pytest.mark.parametrize("method", ["finetune", "prompt", "rs_da", "syn", "cosda_ml", "macular_nots", "macular"])
def test_table2_has_every_language(method, task):
    missing = {"sw", "th"} if (method, task) == ("syn", "xnli") else set()
    assert set(published(method, task)) == set(LANGS[task].split()) - missing | {"avg"}


def test_cells_are_unique_percentages_with_a_known_source():
    keys = [(c.table, c.method, c.task, c.backbone, c.lang) for c in CELLS]
    assert len(set(keys)) == len(keys) == 222 + 8 + 16 + 48 + 12
    assert all(40 < c.accuracy < 100 for c in CELLS) and {c.source for c in CELLS} == set(sources)


def test_copied_rows_are_marked():
    copied = {(c.table, c.method, c.task): c.source for c in CELLS if c.source != "own"}
    assert {k[1] for k in copied} == {"finetune", "rs_da", "syn"}
    assert copied["table2", "finetune", "qam"] == "xglue" and copied["table2", "finetune", "xnli"] == "xtreme"
    assert copied["table5", "finetune", "xnli"] == "dong" and copied["table6", "finetune", "qam"] == "xglue"


def test_some_cells_by_hand():
    assert published("macular", "xnli")["sw"] == 51.3 and published("cosda_ml", "pawsx")["ko"] == 79.7
    assert published("macular", "xnli", "xlmr")["avg"] == 76.2 and published("finetune", "qam", "xlmr")["de"] == 68.1
    assert published("macular_wo_consistency", "xnli") == {"avg": 68.3} and published(
        "macular_nots_wo_qam", "pawsx"
    ) == {"avg": 86.3}
    assert published("nobody", "xnli") == {}


def test_seven_printed_averages_are_off_and_one_beyond_rounding():
    off = [row for row in recomputed(paper["table2"] + paper["table5"] + paper["table6"]) if row["off"]]
    assert [(r["task"], r["method"]) for r in off if not r["rounding"]] == [("xnli", "finetune")]
    assert len(off) == 7


def test_an_average_never_leaves_a_language_out():
    syn = published("syn", "xnli")
    assert round(average(syn), 1) == 68.5
    assert round(average(published("macular", "xnli"), [k for k in syn if k != "avg"]), 2) == 71.35
    with pytest.raises(DataError, match="sw, th"):
        average(syn, LANGS["xnli"].split())
    with pytest.raises(DataError, match="0 languages"):
        average({"avg": 1.0})
    with pytest.raises(DataError, match="0 languages"):
        average(syn, [])


@pytest.mark.parametrize(
    "text, error, said",
    [
        ("t qam mbert en de\nsyn code 1", DataError, "1 cells under 2 columns"),
        ("t qam mbert en\nsyn rumour 1", ParameterError, "rumour"),
        ("t qam mbert en\nsyn code x", ValueError, "x"),
    ],
)
def test_a_bad_table_is_refused(text, error, said):
    with pytest.raises(error, match=said):
        _read_blocks(text)


def test_a_short_line_of_averages_is_refused():
    with pytest.raises(ValueError, match="is shorter than argument 1"):
        _read_averages("qam xnli\nmacular 66.9", "table3")


def test_cells_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        paper["table2"][0].accuracy = 100.0


# records


def made(method="macular", langs=("en", "de"), n=40, seed=0, **more):
    "A record with items"
    rng = np.random.default_rng(seed)
    correct = {x: rng.random(n) < 0.7 for x in langs}
    return Record(
        method,
        "xnli",
        {"en_dev": {x: 100 * int(c.sum()) / n for x, c in correct.items()}},
        seed,
        correct=correct,
        items=dict.fromkeys(langs, f"digest of {n}"),
        **more,
    )


texts = st.text(max_size=12)


@given(
    st.integers(1, 70),
    st.lists(st.sampled_from("en ar bg de zh".split()), min_size=1, unique=True),
    st.integers(0, 2**32 - 1),
    st.dictionaries(texts, texts | st.integers(-9, 9) | st.booleans(), max_size=3),
    texts,
)
@settings(max_examples=60, deadline=None)
def test_records_survive_a_file(tmp_path_factory, n, langs, seed, tags, note):
    known = {"method", "task", *Record.__dataclass_fields__}
    one = made(
        langs=langs,
        n=n,
        seed=seed,
        tags={k: v for k, v in tags.items() if k not in known},
        notes=(note,) if note else (),
        dev=(61.5, 70.25),
        cost={"seconds": {"macular": 3.5}},
    )
    path = tmp_path_factory.mktemp("records") / "all.jsonl"
    save(path, [one])
    append(path, one.as_dict())
    back = from_lines(path)
    assert back == [one, one]
    assert all((back[0].correct[x] == one.correct[x]).all() for x in langs) and back[0].items == one.items


def test_records_of_unequal_sizes_survive_too():
    correct = {"en": np.array([True, False, True]), "de": np.array([False])}
    one = Record("m", "own", {"en_dev": {"en": 200 / 3, "de": 0.0}}, correct=correct, items={"en": "a", "de": "b"})
    back = from_dict(json.loads(json.dumps(one.as_dict())))
    assert back == one and back.correct["de"].tolist() == [False]


def test_bits_are_compact():
    fifteen = [x for x in published("macular", "xnli") if x != "avg"]
    line = json.dumps(made(langs=fifteen, n=500).as_dict())
    assert len(json.dumps(made(langs=fifteen, n=500).as_dict()["correct"])) <= 1300 and len(line) <= 2000


def test_records_differ_in_one_bit():
    one = made()
    other = {x: c.copy() for x, c in one.correct.items()}
    i, j = np.flatnonzero(other["de"])[0], np.flatnonzero(~other["de"])[0]
    other["de"][[i, j]] = False, True
    assert replace(one, correct=other) != one and replace(one) == one


@pytest.mark.parametrize(
    "change, said",
    [
        ({"accuracy": {"en_dev": {"en": 12.5, "de": 101}}, "correct": {}, "items": {}}, "not percentages: de 101"),
        ({"accuracy": {"en_dev": {"en": float("nan")}}, "correct": {}, "items": {}}, "not percentages"),
        ({"accuracy": {"last": {"en": 50.0}}, "correct": {}, "items": {}}, "no accuracy 'en_dev'"),
        (
            {"accuracy": {"en_dev": {"en": 50.0}, "lst": {"en": 50.0}}, "correct": {}, "items": {}},
            "Did you mean 'last'",
        ),
        ({"items": {}}, "items for"),
        ({"accuracy": {"en_dev": {"en": 1.0, "de": 1.0}}}, "contradict"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        replace(made(), **change)


def test_a_folder_of_records_is_read_file_by_file(root):
    "As the study keeps them, a file a seed"
    files = sorted((root / "nbs" / "records" / "study").glob("*.jsonl"))
    assert len(files) >= 2 and file_format(files[0].parent) == "records"
    assert read(files[0].parent) == [r for f in files for r in from_lines(f)]


def test_older_lines_are_read(root):
    control = from_lines(root / "nbs" / "records" / "control.jsonl")
    assert (
        len(control) == 96 and {r.get("dictionary") for r in control} == {"own", "shuffled"} and not control[0].correct
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"method": "m", "task": "t"}', "line 2: a record needs accuracy"),
        ("[1]", "line 2"),
        ("{not json}", "line 2"),
        (
            '{"method": "m", "task": "t", "accuracy": {"en": 50.0}, "correct": {"n": 2, "bits": "!"}, "items": "x"}',
            "line 2: its items cannot be unpacked",
        ),
        (
            '{"method": "m", "task": "t", "accuracy": {"en": 50.0}, "correct": {"n": 9, "bits": "gA=="}, "items": "x"}',
            "line 2",
        ),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path, text, said):
    path = tmp_path / "all.jsonl"
    save(path, [made()])
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(DataError, match=said) as e:
        from_lines(path)
    assert "all.jsonl" in str(e.value) and len(str(e.value)) < 1000


def test_a_line_that_a_crash_cut_is_left_out(tmp_path):
    path = tmp_path / "all.jsonl"
    save(path, [made()])
    whole = path.read_text()
    path.write_text(whole + whole[:100])
    append(path, made(seed=1).as_dict())
    assert [r.seed for r in from_lines(path)] == [0, 1]


def test_items_are_known_by_id_and_label():
    rows = pd.DataFrame({"item": ["b", "a"], "language": "en", "label": ["x", "y"], "prediction": ["x", "x"]})
    assert marked(rows)["correct"]["en"].tolist() == [False, True] and marked(rows)["collapsed"] == ("en",)
    assert marked(rows)["items"] == marked(rows[::-1])["items"]
    assert (
        marked(rows)["items"]
        != marked(rows.assign(label=["y", "x"]))["items"]
        != marked(rows.assign(item=["b", "c"]))["items"]
    )


# a run of ours


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    "A small run that was really done"
    from macular.train.config import check
    from macular.train.run import run

    out = tmp_path_factory.mktemp("runs")
    return run(
        check(
            {
                "task": "qam",
                "method": "finetune",
                "preset": "mini",
                "max_train": 64,
                "rounds": 2,
                "langs": ["de"],
                "out": str(out),
            }
        ),
        watch=lambda event, facts: None,
    )


@pytest.mark.slow
def test_a_run_becomes_a_record(job):
    (found,) = read(job.folder)
    frame = job.predictions
    assert (
        found == record(job.folder) and found.accuracy["en_dev"] == job.accuracy["qam"] and found.langs == ("en", "de")
    )
    for lang, rows in frame.groupby("language"):
        ordered = rows.assign(item=rows["item"].astype(str)).sort_values("item")
        assert (found.correct[lang] == (ordered["label"] == ordered["prediction"]).to_numpy()).all()
    assert set(found.accuracy) == {"en_dev"} and len(found.dev) == 2
    assert (
        found.trainings == {"finetune": job.values["trainings"]["finetune"]["key"]}
        and found.parameters["max_train"] == 64
    )
    assert (
        found.cost["seconds"]["finetune"] > 0
        and found.cost["encoders"] == 1
        and (found.seed, found.preset, found.split) == (0, "mini", "test")
    )
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.slow
def test_a_folder_of_runs(job, tmp_path):
    assert runs(job.folder.parent) == [record(job.folder)] == read(job.folder.parent)
    with pytest.raises(DataError, match="no finished run"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        read(tmp_path / "nowhere")


@pytest.mark.slow
def test_our_predictions_as_a_table_are_the_same_items(job):
    (found,) = read(job.folder / "predictions.parquet", method="copy", task="qam")
    assert found.items == record(job.folder).items and all(
        (found.correct[x] == record(job.folder).correct[x]).all() for x in found.langs
    )


@pytest.mark.slow
def test_a_runs_name_below_runs_is_enough(job, tmp_path, monkeypatch, capsys):
    "For rerun and what a run is taken by, and for tables and comparisons"
    from macular.cli import main
    from macular.deploy.card import result_of
    from macular.jobs.rerun import _finished_run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(job.folder.parent)
    name, elsewhere = job.folder.name, "0123456789abcdef"
    assert (
        _finished_run(name).resolve() == result_of(name).folder.resolve() == job.folder.resolve()
        and located(elsewhere) is None
    )
    assert main(["table", name, "--by", "languages"]) == 0 and "| Fine-tuning |" in capsys.readouterr().out
    assert main(["compare", name, f"{name}:finetune"]) == 0 and "Made alike" in capsys.readouterr().out
    assert (
        main(["table", elsewhere]) == 3
        and main(["compare", elsewhere, name]) == 2
        and "no run below runs/" in capsys.readouterr().err
    )
    assert main(["rerun", elsewhere]) == 3 and "a folder or a name below runs/" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_said_of_our_own_records_counts(job):
    assert read(job.folder, method="renamed", dictionary="none")[0].method == "renamed"
    assert read(job.folder, method="renamed", dictionary="none")[0].get("dictionary") == "none"


@pytest.mark.slow
def test_a_run_holds_the_digests_of_its_inputs(job, tmp_path):
    from macular.train.config import check
    from macular.train.run import run

    found = record(job.folder).digests
    names = {f"{s} examples of qam in {x}" for s in ("dev", "test") for x in ("en", "de")}
    others = {"training examples of qam", "drawn sample of qam", "task record of qam", "backbone files"}
    assert set(found) == names | others, "this method uses no dictionary"
    assert found["training examples of qam"] != found["drawn sample of qam"], "64 examples were drawn from the pool"
    given = {"task": "qam", "preset": "mini", "max_train": 32, "rounds": 1, "langs": ["de"], "out": str(tmp_path)}
    other = record(run(check(given | {"method": "cosda_ml"}), watch=lambda event, facts: None).folder).digests
    assert other.keys() - found.keys() == {"dictionaries"}
    assert {name for name in found if found[name] != other[name]} == {"drawn sample of qam"}


def asked_at(folder, time):
    "Change the time at which a run was last asked for; None: that of an older run"
    environment = json.loads((folder / "environment.json").read_text()) | {"asked": time}
    if time is None:
        del environment["asked"]
    (folder / "environment.json").write_text(json.dumps(environment))


@pytest.mark.slow
def test_of_repeated_runs_the_last_one_counts(job, tmp_path):
    "Data were changed and the command repeated; then changed back, and the first result was found again"
    for name, digest in (("one", "old"), ("two", "new")):
        copytree(job.folder, tmp_path / name)
        result = json.loads((job.folder / "result.json").read_text())
        result["digests"]["training examples of qam"] = digest
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        asked_at(tmp_path / name, 1000 + (name == "two"))
        os.utime(tmp_path / name / "result.json", (9000 - (name == "two"),) * 2)  # a copy has other times
    (found,) = read(tmp_path)
    assert found.folder.endswith("two") and "one (training examples of qam)" in found.replaced[0]
    assert "two is current; left out: the earlier" in overview([found]).notes[0]
    asked_at(tmp_path / "one", 1002)
    (found,) = read(tmp_path)
    assert found.folder.endswith("one")
    for name in ("one", "two"):
        asked_at(tmp_path / name, None)
    os.utime(tmp_path / "two" / "result.json", (9001, 9001))
    (found,) = read(tmp_path)
    assert found.folder.endswith("two"), "older runs do not say it: the time of their result counts"
    both = [*read(tmp_path / "one"), *read(tmp_path / "two")]
    with pytest.raises(ParameterError, match=r"different inputs \(training examples of qam\).*one \(seed 0\)"):
        same_design(both)
    assert [row[0] for row in overview(both).rows] == [f"Fine-tuning, inputs {key(r.inputs, length=4)}" for r in both]


@pytest.mark.slow
def test_a_result_that_is_found_again_becomes_the_newest(job):
    from macular.train.config import check
    from macular.train.run import run

    given = {"task": "qam", "method": "finetune", "preset": "mini", "max_train": 64, "rounds": 2, "langs": ["de"]}
    events = []
    older = {name: value for name, value in job.values.items() if name != "digests"}
    (job.folder / "result.json").write_text(json.dumps(older))
    asked_at(job.folder, 1000)
    run(check(given | {"out": str(job.folder.parent)}), watch=lambda event, facts: events.append(event))
    assert "already" in events and json.loads((job.folder / "environment.json").read_text())["asked"] > 2000
    assert record(job.folder).digests == job.values["digests"], "of an older result they are added"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: None, "one of them was renamed; parameters, trainings and recorded inputs are the same"),
        (lambda r: r["digests"].update({"training examples of qam": "b"}), "changed were training examples of qam"),
        (lambda r: r["config"].update(rounds=5), "changed were parameter rounds"),
        (lambda r: r.update(algorithm=7), "changed were algorithm"),
        (lambda r: r.pop("digests"), "one of them was renamed"),
    ],
)
def test_a_comparison_of_runs_names_the_true_cause(job, tmp_path, change, said):
    from macular.jobs.rerun import compare_runs

    result = json.loads((job.folder / "result.json").read_text())
    change(result)
    copytree(job.folder, tmp_path / "best")
    (tmp_path / "best" / "result.json").write_text(json.dumps(result))
    frame = job.predictions.assign(prediction="yes")
    frame.to_parquet(tmp_path / "best" / "predictions.parquet")
    assert f"Their folders are best and {job.folder.name}: {said}" in str(compare_runs(tmp_path / "best", job.folder))


def with_inputs(seed, **digests):
    named = {name.replace("_", " "): value for name, value in digests.items()}
    return made(seed=seed, digests=named, folder=f"r{seed}")


@pytest.mark.parametrize("name", ["training_examples", "test_examples", "backbone_files", "dictionaries"])
def test_runs_of_different_inputs_are_not_averaged(name):
    inputs = {"training_examples": "a", "test_examples": "a", "backbone_files": "a", "dictionaries": "a"}
    alike = [with_inputs(0, **inputs), with_inputs(1, **inputs, drawn_sample="x")]
    other = with_inputs(2, **inputs | {name: "b"})
    assert len(same_design(alike)) == 2 and len(overview(alike).rows) == 1
    said = rf"different inputs \({name.replace('_', ' ')}\).*r0 \(seed 0\), r2"
    with pytest.raises(ParameterError, match=said):
        same_design([*alike, other])
    table = overview([*alike, other])
    assert [row[2] for row in table.rows] == ["2", "1"] and "r0 (seed 0), r1 (seed 1); inputs" in table.notes[0]


def test_older_records_are_a_group_of_their_own():
    records = [with_inputs(0, training_examples="a"), with_inputs(1, training_examples="a"), made(seed=2), made(seed=3)]
    table = overview(records)
    assert [row[0] for row in table.rows][1] == "Macular, inputs not recorded" and table.rows[1][2] == "2"
    with pytest.raises(ParameterError, match="inputs not recorded by one of them"):
        same_design(records)


def test_rows_scored_on_different_examples_do_not_compare():
    a = [with_inputs(s, test_examples="a") for s in (0, 1)]
    b = [replace(with_inputs(s, test_examples="b"), method="finetune") for s in (0, 1)]
    table = overview([*a, *b])
    assert "Rows do not compare, and none is bold, as test examples differ: r0" in " ".join(table.notes)
    assert not any(row[1].best for row in table.rows)
    with pytest.raises(DataError, match="different test examples"):
        overview([*a, *b], TableOptions(against="finetune"))


# others'


def csv_of(path, text):
    path.write_text(text, encoding="utf-8")
    return path


GOOD = (
    "item,language,label,prediction\n1,en,entailment,entailment\n2,en,neutral,contradiction\n1,sw,entailment,neutral\n"
    "2,sw,neutral,neutral\n"
)


@pytest.mark.parametrize("name, text", [("a.csv", GOOD), ("a.tsv", GOOD.replace(",", "\t"))])
def test_a_table_of_predictions(tmp_path, name, text):
    (found,) = read(csv_of(tmp_path / name, text), method="rival", task="xnli", seed="3", origin="elsewhere")
    assert (
        found.accuracy["en_dev"] == {"en": 50.0, "sw": 50.0} and found.seed == 3 and found.get("origin") == "elsewhere"
    )
    assert found.correct["en"].tolist() == [True, False] and found.correct["sw"].tolist() == [False, True]


def test_a_table_of_several_runs(tmp_path):
    rows = [
        f"{i},en,{y},{p},{m},{s}"
        for m in ("a", "b")
        for s in (0, 1)
        for i, y, p in ((1, "neutral", "neutral"), (2, "neutral", "entailment"))
    ]
    found = read(
        csv_of(tmp_path / "a.csv", "item,language,label,prediction,method,seed\n" + "\n".join(rows)), task="xnli"
    )
    assert [(r.method, r.seed) for r in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_what_a_table_says_counts(tmp_path):
    "A note is for what the table does not say, an empty cell among it"
    path = csv_of(
        tmp_path / "a.csv",
        "item,language,label,prediction,method,seed\n1,en,neutral,neutral,bar,4\n1,en,neutral,entailment,,5\n",
    )
    assert [
        (r.method, r.seed, r.backbone, r.get("path"))
        for r in read(path, method="foo", seed=7, task="xnli", backbone="b", path="elsewhere")
    ] == [("bar", 4, "b", "elsewhere"), ("foo", 5, "b", "elsewhere")]
    import pandas as pd

    pd.read_csv(path).to_parquet(tmp_path / "a.parquet")
    assert [(r.method, r.seed) for r in read(tmp_path / "a.parquet", method="foo", task="xnli")] == [
        ("bar", 4),
        ("foo", 5),
    ]


@pytest.mark.parametrize(
    "text, about, error, said",
    [
        (GOOD, {}, ParameterError, "say it: read"),
        (GOOD, {"task": "xnli"}, ParameterError, "method"),
        (GOOD, {"task": "xnlii", "method": "m"}, ParameterError, "Did you mean 'xnli'"),
        (GOOD, {"task": "xnli", "method": "m", "seed": "one"}, ParameterError, "whole number"),
        (GOOD.replace("prediction", "guess"), {"task": "xnli", "method": "m"}, DataError, "no column prediction"),
        (
            GOOD.replace("2,sw,neutral", "2,sw,"),
            {"task": "xnli", "method": "m"},
            DataError,
            "line 5: unknown label of xnli ''",
        ),
        (
            "item,language,label,prediction\n1,en,neutral,0\n2,en,neutral,1\n",
            {"task": "xnli", "method": "m"},
            DataError,
            "line 2: unknown label of xnli '0'.*In all 2 of 2",
        ),
        (GOOD + "1,en,entailment,neutral\n", {"task": "xnli", "method": "m"}, DataError, "there twice: 1"),
        ("item,language,label,prediction\n", {"task": "xnli", "method": "m"}, DataError, "0 rows"),
        ("", {"task": "xnli", "method": "m"}, DataError, "no table"),
    ],
)
def test_a_bad_table_of_predictions_is_refused(tmp_path, text, about, error, said):
    with pytest.raises(error, match=said) as e:
        read(csv_of(tmp_path / "a.csv", text), **about)
    assert len(str(e.value)) < 1000


@pytest.fixture(scope="module")
def gold():
    return {x: load("pawsx", "test", x, Mini()) for x in ("en", "de")}


def test_xtreme_folders(tmp_path, gold):
    for lang, rows in gold.items():
        csv_of(
            tmp_path / f"test-{lang}.tsv", "".join(f"{y if i % 5 else 1 - y}\n" for i, y in enumerate(rows["label"]))
        )
    assert file_format(tmp_path) == "xtreme"
    (found,) = read(tmp_path, gold, method="sub", task="pawsx")
    wanted = 100 * sum(i % 5 > 0 for i in range(len(gold["en"]))) / len(gold["en"])
    assert found.accuracy["en_dev"] == {"en": wanted, "de": wanted} and found.langs == ("en", "de")
    order = np.argsort(np.array([str(i) for i in gold["de"]["id"]]), kind="stable")
    assert (found.correct["de"] == (np.arange(len(gold["de"])) % 5 > 0)[order]).all()


@pytest.mark.parametrize(
    "text, said",
    [
        ("0\n1\n", "test-en.tsv: 2 lines for"),
        ("", "0 lines"),
        ("maybe\n" * 500, "test-en.tsv, line 1: unknown label of pawsx 'maybe'"),
    ],
)
def test_bad_xtreme_folders(tmp_path, gold, text, said):
    csv_of(tmp_path / "test-en.tsv", text)
    with pytest.raises(DataError, match=said):
        read(tmp_path, gold, method="sub", task="pawsx")
    with pytest.raises(DataError, match="no examples were given for 'en'"):
        read(tmp_path, method="sub", task="pawsx")


def samples(folder, task, lang, rights, **more):
    lines = [
        {"doc_id": i, "target": "0", "filter": "none", "metrics": ["acc"], "acc": float(right)} | more
        for i, right in enumerate(rights)
    ]
    return csv_of(folder / f"samples_{task}_{lang}_2026-02-03T04-05-06.789.jsonl", "\n".join(map(json.dumps, lines)))


def test_samples_of_the_harness(tmp_path):
    for lang in ("sw", "en"):
        samples(tmp_path, "xnli", lang, [1, 0, 1, 1])
    samples(tmp_path, "paws", "de", [0, 1])
    xnli, pawsx = sorted(read(tmp_path, method="llm"), key=lambda r: r.task != "xnli")
    assert (
        xnli.accuracy["en_dev"] == {"en": 75.0, "sw": 75.0}
        and xnli.langs[0] == "en"
        and pawsx.task == "pawsx"
        and pawsx.accuracy["en_dev"] == {"de": 50.0}
    )
    assert xnli.correct["sw"].tolist() == [True, False, True, True]


def test_the_task_in_a_name_of_the_harness_counts(tmp_path):
    samples(tmp_path, "paws", "de", [0, 1])
    samples(tmp_path, "mine", "de", [1, 1])
    assert [(r.task, r.accuracy["en_dev"]["de"]) for r in read(tmp_path, method="llm", task="xnli")] == [
        ("xnli", 100.0),
        ("pawsx", 50.0),
    ]


def test_samples_with_rows_pair_with_ours(tmp_path, gold):
    samples(tmp_path, "paws", "de", [1] * len(gold["de"]))
    csv_of(
        tmp_path.parent / "ours.csv",
        "item,language,label,prediction\n"
        + "".join(f"{i},de,{y},{y}\n" for i, y in zip(gold["de"]["id"], gold["de"]["label"])),
    )
    (harness,) = read(tmp_path, gold, method="llm")
    (ours,) = read(tmp_path.parent / "ours.csv", method="m", task="pawsx")
    assert harness.items == ours.items


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: csv_of(f, f.read_text() + "\n{"), "line 3 is no JSON"),
        (lambda f: csv_of(f, '{"doc_id": 1}'), "line 1: there is no acc or exact_match"),
        (lambda f: csv_of(f, f.read_text().replace('"none"', '"strict"', 1)), "2 filters"),
        (lambda f: f.rename(f.with_name("samples_gsm8k_2026-02-03T04-05-06.jsonl")), "does not end in a language"),
        (lambda f: csv_of(f.with_name(f.name.replace("02-03", "02-04")), f.read_text()), "several files"),
    ],
)
def test_bad_samples(tmp_path, spoil, said):
    spoil(samples(tmp_path, "xnli", "de", [1, 0]))
    with pytest.raises(DataError, match=said):
        read(tmp_path, method="llm")


def test_samples_of_other_rows_are_refused(tmp_path, gold):
    samples(tmp_path, "paws", "de", [1] * (len(gold["de"]) + 1))
    with pytest.raises(DataError, match="not the examples that it predicts"):
        read(tmp_path, gold, method="llm")


def test_what_nobody_knows_is_refused(tmp_path):
    with pytest.raises(DataError, match="is none of"):
        read(csv_of(tmp_path / "notes.docx", "x"))


# a task of one's own


OWN = """
name = "qa"
labels = ["no", "yes"]
langs = ["en", "de"]

[source]
files = "{split}.{lang}.tsv"
text_a = "question"
text_b = "passage"
label = "label"
labels = {"0" = "no", "1" = "yes"}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A record, test files of eight examples, and predictions: six of eight right in German, all in English"
    monkeypatch.chdir(tmp_path)
    csv_of(tmp_path / "qa.toml", OWN)
    for lang in ("en", "de"):
        rows = [f"{i}\tquestion {i} {lang}\tpassage\t{i % 2}" for i in range(8)]
        csv_of(tmp_path / f"test.{lang}.tsv", "\n".join(["id\tquestion\tpassage\tlabel", *rows]) + "\n")
    given = {(lang, i): (i + (lang == "de" and i < 2)) % 2 for lang in ("en", "de") for i in range(8)}
    lines = [f"{i},{lang},{i % 2},{p}" for (lang, i), p in given.items()]
    csv_of(tmp_path / "numbers.csv", "\n".join(["id,language,label,prediction", *lines]) + "\n")
    names = ("no", "yes")
    lines = [f"{i},{lang},{names[i % 2]},{names[p]}" for (lang, i), p in given.items()]
    csv_of(tmp_path / "names.csv", "\n".join(["item,language,label,prediction", *lines]) + "\n")
    csv_of(tmp_path / "de.txt", "".join(f"{names[given['de', i]]}\n" for i in range(8)))
    return tmp_path


@pytest.mark.parametrize("task", ["qa.toml", "qa"])
@pytest.mark.parametrize("name", ["names", "numbers"])
def test_predictions_for_a_task_of_ones_own(own, capsys, name, task):
    from macular.cli import main

    words = ["--where", f"task={task}"]
    assert main(["table", f"{name}.csv", "--by", "languages", *words]) == 0
    shown = capsys.readouterr().out
    assert f"| {name} | 100.0 | 75.0 | 87.5 |" in shown.replace("**", "") and "selected" not in shown
    assert main(["compare", f"{name}.csv", "names.csv", *words]) == 0
    assert "+0.00 points" in capsys.readouterr().out


def test_one_label_a_line(own, capsys):
    from macular.cli import main

    assert main(["table", "de.txt", "--by", "languages", "--where", "task=qa.toml"]) == 0
    assert "| de | 75.0 | 75.0 |" in capsys.readouterr().out
    (listed,), (table,) = read("de.txt", task="qa.toml", method="m"), read("names.csv", task="qa.toml", method="m")
    assert (listed.correct["de"] == table.correct["de"]).all() and listed.items["de"] == table.items["de"]
    with pytest.raises(DataError, match="ends in no language of qa"):
        read(csv_of(own / "guesses.txt", "no\n"), task="qa.toml", method="m")


def test_predictions_that_are_no_label_count_as_wrong_and_are_counted(own, capsys):
    from macular.cli import main

    text = (own / "names.csv").read_text().replace("0,en,no,no", "0,en,no,").replace("3,de,yes,yes", "3,de,yes,Both?")
    csv_of(own / "chat.csv", text)
    (found,) = read("chat.csv", task="qa", method="chat")
    assert found.unlabelled == {"en": 1, "de": 1} and found.accuracy["en_dev"] == {"en": 87.5, "de": 62.5}
    assert main(["table", "chat.csv", "--where", "task=qa"]) == 0
    assert "empty or no label, which count as wrong: chat on qa: 2 of 16." in capsys.readouterr().out
    assert main(["compare", "chat.csv", "names.csv", "--where", "task=qa"]) == 0
    assert "empty or no label, which count as wrong: chat on qa: 2 of 16." in capsys.readouterr().out
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_an_unknown_task_of_predictions_says_how_to_name_ones_own(own):
    with pytest.raises(ParameterError, match="Did you mean 'xnli'.*task=xnlj.toml"):
        read("names.csv", task="xnlj", method="m")
