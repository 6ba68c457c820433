"""`import macular`: eleven names, imported when they are used, and an example that works offline."""

import subprocess
import sys
from textwrap import dedent

import pytest
from conftest import ROOT

import macular

NAMES = {"Job", "run", "Task", "tasks", "methods", "load", "read_records", "compare", "table", "export", "predict"}
HEAVY = {"torch", "transformers", "datasets", "pandas", "numpy", "scipy"}


def example():
    "The lines of code in the package's docstring"
    return dedent("".join(f"{line}\n" for line in macular.__doc__.splitlines() if line.startswith("    ")))


def fresh(code, **more):
    "Run code in a new process"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **more)


def test_the_names_are_listed():
    assert set(macular.__all__) == NAMES <= set(dir(macular))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_the_one_of_its_chapter(name):
    value = getattr(macular, name)
    assert value is not None and macular.__dict__[name] is value
    if callable(value):
        assert value.__module__.startswith("macular.") and value.__doc__


def test_what_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'jobb'"):
        _ = macular.jobb
    assert not hasattr(macular, "trainer")


def test_importing_the_package_imports_nothing_heavy():
    done = fresh(f"import sys, macular; dir(macular); print(*sorted({HEAVY!r} & set(sys.modules)))", cwd=ROOT)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_planning_names_need_no_torch():
    code = "import sys, macular as m; m.Job, m.Task, m.tasks, m.methods, m.load, m.read_records, m.compare, m.table"
    done = fresh(f"{code}; assert 'torch' not in sys.modules", cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_chapter_is_still_a_package():
    code = "import macular.data.tasks; from macular import train, tasks; print(train.__name__, len(tasks))"
    done = fresh(code, cwd=ROOT)
    assert done.stdout.split() == ["macular.train", "6"], done.stderr


@pytest.mark.slow
def test_the_example_of_the_docstring_works(tmp_path):
    assert len(example().splitlines()) == 5 and len(macular.__doc__.splitlines()) <= 12
    done = fresh(example(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| CoSDA-ML |" in done.stdout and "**CoSDA-ML − Fine-tuning**" in done.stdout
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
