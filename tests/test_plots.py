"""Messages about a run while it goes on."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

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


def test_a_confusion_matrix_of_each_language():
    both = pd.concat([FOUR, FOUR.assign(language="de", prediction="a")])
    drawn = figures.plot_confusion(both)
    shown = [[text.get_text() for text in ax.texts] for ax in drawn.axes]
    assert [ax.get_title() for ax in drawn.axes] == ["en", "de"] and shown == [
        ["50", "50", "0", "100"],
        ["100", "0", "100", "0"],
    ]
