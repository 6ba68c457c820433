"""Messages about a run while it goes on."""

from types import SimpleNamespace

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
