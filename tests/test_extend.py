"""Records of one's own: defined twice in a notebook, and known to a fresh kernel on a Ray worker."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from macular.core import Registry
from macular.exceptions import ParameterError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_same_record_may_be_defined_again():
    "As a cell that is run twice does: the class is another object, the record says the same"

    def make(value):
        @dataclass(frozen=True)
        class Thing:
            name: str
            value: int = 0

        return Thing("a", value)

    registry = Registry("thing")
    registry.add(make(1))
    again = registry.add(make(1))
    assert registry["a"] is again
    with pytest.raises(ParameterError, match="another thing named 'a'"):
        registry.add(make(2))


THROUGH_RAY = """
import sys
from pathlib import Path
import nbformat

cells = [c.source for c in nbformat.read("nbs/howto/extend.ipynb", 4).cells if c.cell_type == "code"]
last = next(i for i, c in enumerate(cells) if c.startswith("mine = "))
names = {"In": ["", *cells[:last]], "__name__": "howto"}
for cell in cells[: last + 1]: exec(cell, names)

from macular.jobs.engines import Ray, run_as_notebook, sweep
from macular.jobs.plan import plan

done = sweep(plan([names["parameters"] | {"rounds": 1, "max_train": 96}]), Ray(gpus=0, dashboard=False), do=run_as_notebook)
[state] = done.states
print(state)
assert state["state"] == "done", state
folder = Path(names["parameters"]["out"]) / state["folder"]
assert list(folder.parent.glob("*/report.ipynb")) or list(folder.parent.glob("*/*/report.ipynb")), "the job was to be a notebook"
"""  # noqa: E501


def test_the_how_tos_job_through_ray():
    "Task, backbone, loss, augmentation and row of one's own, known to a kernel that papermill starts on a Ray worker"
    pytest.importorskip("ray", reason="Ray is not installed: the extra `cluster`")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    env.pop("IN_TEST", None)
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_RAY], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
