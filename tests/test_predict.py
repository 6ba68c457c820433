"""`macular predict`: files of pairs, a run or a model folder, labels and probabilities; no file is replaced."""

import io

import numpy as np
import pandas as pd
import pytest

from macular.cli import main
from macular.data.mini_world import Mini
from macular.data.readers import read_texts
from macular.data.tasks import load
from macular.deploy.huggingface import export, predict_texts
from macular.exceptions import DataError
from macular.store import read_json, write_json
from macular.train.config import check
from macular.train.run import run

SMALL = {"task": "pawsx", "preset": "mini", "max_train": 48, "rounds": 2, "langs": "de"}
WORLD = Mini(train=48, dev=40, test=60)


def finished(method, out, **more):
    return run(check(SMALL | {"method": method, "out": str(out)} | more), lambda event, facts: None, WORLD)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return finished("finetune", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def model(done, tmp_path_factory):
    return export(done, tmp_path_factory.mktemp("models") / "pawsx")


@pytest.fixture(scope="module")
def pairs():
    "The German test pairs"
    return load("pawsx", "test", "de", WORLD).to_pandas()[["text_a", "text_b"]]


def said_by(result):
    return result.predictions.query("language == 'de'").reset_index(drop=True)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_every_format_gives_the_runs_own_predictions(done, pairs, tmp_path, kind, capsys):
    path, few = tmp_path / f"new.{kind}", pairs[:6]
    if kind in ("csv", "tsv"):
        few.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        few.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        few.to_parquet(path)
    else:
        path.write_text("".join(f"{a}\t{b}\n" for a, b in few.itertuples(index=False)), "utf-8")
    assert main(["predict", str(done.folder), str(path)]) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(found) == ["text_a", "text_b", "prediction", "p_different", "p_paraphrase"]
    assert found["prediction"].tolist() == said_by(done)["prediction"][:6].tolist()
    assert np.allclose(found["p_paraphrase"], said_by(done)["p_paraphrase"][:6], atol=1e-6)


def test_a_model_folder_says_what_its_run_says(done, model, pairs):
    ours, theirs = (predict_texts(pairs[:8], place) for place in (done.folder, model))
    assert np.abs(ours["p_different"] - theirs["p_different"]).max() < 1e-5


@pytest.mark.slow
def test_a_run_of_two_averaged_models_is_used_as_it_was_scored(tmp_path, pairs):
    result = finished("finetune_x2", tmp_path)
    found = predict_texts(pairs, result.folder)
    assert found["p_different"].tolist() == said_by(result)["p_different"].tolist()


def test_columns_are_named_and_others_kept(model, pairs, tmp_path):
    frame = pairs[:3].rename(columns={"text_a": "question", "text_b": "answer"}).assign(id=[7, 8, 9])
    frame.to_csv(tmp_path / "new.csv", index=False)
    words = ["--column", "question", "--column", "answer", "--keep", "id", "--to", str(tmp_path / "said.jsonl")]
    assert main(["predict", str(model), str(tmp_path / "new.csv"), *words]) == 0
    found = pd.read_json(tmp_path / "said.jsonl", lines=True)
    assert list(found)[:4] == ["id", "question", "answer", "prediction"] and found["id"].tolist() == [7, 8, 9]


def test_a_file_that_is_there_is_never_replaced(model, pairs, tmp_path, capsys):
    pairs[:2].to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "said.csv").write_text("mine")
    said = str(tmp_path / "said.csv")
    assert main(["predict", str(model), str(tmp_path / "new.csv"), "--to", said]) == 5
    assert "is not replaced" in capsys.readouterr().err and (tmp_path / "said.csv").read_text() == "mine"
    assert main(["predict", str(model), str(tmp_path / "new.csv"), "--to", str(tmp_path / "said.xls")]) == 2
    assert "unknown format '.xls'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content, wanted",
    [
        ("new.csv", "text_a,text_c\na,b\n", "Did you mean 'text_c'?"),
        ("new.csv", "", "is empty"),
        ("new.csv", "text_a,text_b\n", "has no rows"),
        ("new.jsonl", '{"text_a": "a", "text_b": "b"}\n{"text_a": "a", "text_b": null}\n', "line 2: no text in column"),
        ("new.txt", "a\tb\nno tab\n", "do not have the 2 cells"),
        ("new.json", "{}", "not JSON lines"),
        ("gone.csv", None, "is not there"),
    ],
)
def test_a_wrong_file_is_a_message_of_exit_code_3(model, tmp_path, capsys, name, content, wanted):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["predict", str(model), str(tmp_path / name)]) == 3
    assert wanted in capsys.readouterr().err


def test_a_wrong_folder_is_a_message(tmp_path, capsys):
    (tmp_path / "new.csv").write_text("text_a,text_b\na,b\n")
    for folder in (tmp_path, tmp_path / "gone"):
        assert main(["predict", str(folder), str(tmp_path / "new.csv")]) == 3
        assert "no model and no finished run" in capsys.readouterr().err


def test_a_student_is_used_as_a_model_folder(done, pairs, tmp_path, monkeypatch):
    folder = tmp_path / "student"
    folder.mkdir()
    write_json(folder / "result.json", read_json(done.folder / "result.json") | {"teacher": {"run": "x"}})
    with pytest.raises(ValueError, match="macular export student FOLDER"):
        predict_texts(pairs[:1], folder)


def test_a_cell_without_text_is_named_by_its_line(tmp_path):
    pd.DataFrame({"text_a": ["a", None], "text_b": ["b", "c"]}).to_parquet(tmp_path / "new.parquet")
    with pytest.raises(DataError, match="line 2: no text in column 'text_a'; in all 1 of 2 rows"):
        read_texts(tmp_path / "new.parquet")
