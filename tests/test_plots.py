"""Messages about a run while it goes on."""

import json
from inspect import signature
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from macular.exceptions import ParameterError
from macular.results import figures
from macular.train.methods import macular


@pytest.mark.parametrize("done", [0, 15, 20, 40])
def test_the_time_left_after_a_kill(monkeypatch, done):
    "Three rounds of 20 cheap and 10 dear steps; the process starts when `done` of the 90 are behind"
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(figures, "time", clock)
    cost = {"discriminator": 1.0, "net": 5.0}

    def phase(step):
        return "net" if (step - 1) % 30 >= 20 else "discriminator"

    progress = figures.Progress()
    progress.start({"method": macular, "steps": 90, "phases": [("discriminator", 20), ("net", 10)]})
    for step in range(done + 1, 91):
        clock.now += cost[phase(step)]
        progress.take({"step": step, "phase": phase(step), "round": 1, "pass": 1, "batch": 1, "loss": 1.0, "task": 1.0})
        if len(progress.took) == 2:
            assert progress.left() == pytest.approx(sum(cost[phase(s)] for s in range(step + 1, 91)))
    assert progress.step == 90 and progress.left() == 0


FOUR = pd.DataFrame(
    {
        "language": ["en"] * 4,
        "label": ["a", "a", "b", "b"],
        "prediction": ["a", "b", "b", "b"],
        "p_a": [0.9, 0.3, 0.45, 0.1],
        "p_b": [0.1, 0.7, 0.55, 0.9],
    }
)


def test_measures_by_hand():
    (row,) = figures.measure_rows(FOUR)
    assert row["accuracy"] == "75.0" and row["macro-F1"] == f"{100 * (2 / 3 + 4 / 5) / 2:.1f}"
    assert row["log loss"] == f"{-np.log([0.9, 0.3, 0.55, 0.9]).mean():.3f}"
    # bins of 1/15: 0.9 (two, both right), 0.7 (wrong) and 0.55 (right) are three bins
    assert row["calibration error"] == f"{100 * (2 * 0.1 + 0.7 + 0.45) / 4:.1f}"
    a, b = figures.measure_rows(FOUR, "en")
    assert [a[c] for c in ("examples", "precision", "recall", "F1")] == ["2", "100.0", "50.0", "66.7"]
    assert [b[c] for c in ("examples", "precision", "recall", "F1")] == ["2", "66.7", "100.0", "80.0"]
    (bare,) = figures.measure_rows(FOUR[["language", "label", "prediction"]])
    assert set(bare) == {"language", "accuracy", "macro-F1"}


@pytest.mark.parametrize("form, begins", [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_figure_is_saved_by_one_argument(tmp_path, form, begins):
    file = tmp_path / "figures" / f"languages.{form}"
    before = dict(plt.rcParams)
    drawn = figures.plot_languages({"en": 80.0, "de": 60.0}, 50.0, file=str(file))
    assert file.read_bytes().startswith(begins) and drawn.axes[0].get_ylabel() == "accuracy, %"
    assert dict(plt.rcParams) == before, "the style is that of the figure alone"
    assert "file" in signature(figures.curves).parameters


def test_another_format_of_a_figure_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="'docx'.*pdf"):
        figures.plot_confusion(FOUR, file=str(tmp_path / "confusion.docx"))
    assert not list(tmp_path.iterdir())


def test_numbers_of_a_heat_map_have_contrast():
    "Black on the light cell, white on the dark one"
    ax = figures.plot_confusion(FOUR.assign(prediction=["a", "a", "b", "b"])).axes[0]
    assert {text.get_text(): text.get_color() for text in ax.texts} == {"100": "black", "0": "white"}


def test_a_training_without_a_finished_round_has_one_panel(tmp_path):
    "No panel is empty, and a single round is a mark"
    step = {"phase": "net", "pass": 1, "batch": 0, "loss": 1.0, "task": 1.0}
    lines = [{"step": n, "round": 1} | step for n in (1, 2, 3)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [ax.get_title() for ax in figures.curves(tmp_path).axes] == ["losses"]
    lines.append({"round": 1, "dev": {"xnli": 60.0}, "lang_disc": {"accuracy": 0.7, "chance": 0.5}})
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    left, right = figures.curves(tmp_path, "a title").axes
    assert all(line.get_marker() not in ("", "None") for line in right.lines)
    named = [text.get_text() for text in right.get_legend().texts]
    assert named == ["language discriminator", "its chance level", "XNLI, dev"]


def test_a_confusion_matrix_of_each_language():
    both = pd.concat([FOUR, FOUR.assign(language="de", prediction="a")])
    drawn = figures.plot_confusion(both)
    shown = [[text.get_text() for text in ax.texts] for ax in drawn.axes]
    assert [ax.get_title() for ax in drawn.axes] == ["en", "de"] and shown == [
        ["50", "50", "0", "100"],
        ["100", "0", "100", "0"],
    ]
