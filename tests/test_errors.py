"""Errors: one hierarchy, messages that fit a screen whatever the input, and the record a failed job leaves."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macular.core import visible
from macular.data.readers import read_columns
from macular.exceptions import (
    DataError,
    MacularError,
    NumericError,
    ParameterError,
    SetupError,
    StorageError,
    _brief,
    error_class,
    first_line,
    shown,
    unknown,
)
from macular.jobs.engines import KilledError, attempt
from macular.process import _anonymous, failure
from macular.store import read_json
from macular.train.config import Job, check, fill
from macular.train.resolve import place
from macular.train.run import recorded

KINDS = (MacularError, ParameterError, DataError, SetupError, StorageError, NumericError)
TEXT = st.text(st.characters(), max_size=300) | st.builds(
    lambda t, n: t * n, st.text(st.characters(), max_size=30), st.integers(0, 3000)
)  # surrogates, too
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def readable(text):
    return len(text) <= 1000 and text.count("\n") < 12 and text.replace("\n", "").isprintable()


def test_one_hierarchy():
    assert [kind.exit_code for kind in KINDS] == [1, 2, 3, 4, 5, 6]
    for kind, plain in zip(KINDS[1:], (ValueError, ValueError, RuntimeError, OSError, ArithmeticError)):
        assert issubclass(kind, plain) and issubclass(kind, MacularError) and kind.hint
    assert (
        error_class("DataError") is DataError
        and error_class("KilledError") is error_class("Died") is KilledError
        and error_class("ValueError") is MacularError
        and error_class("EnvironmentProblem") is SetupError
    )


@quick
@given(TEXT, st.sampled_from(KINDS))
def test_any_message_fits_a_screen(text, kind):
    error = kind(text)
    assert readable(str(error)) and error.args == (text,)
    assert _brief(str(error)) == str(error)
    if readable(text):
        assert str(error) == text.strip()


@quick
@given(st.lists(TEXT, min_size=2, max_size=40))
def test_the_first_line_and_the_last_stay(lines):
    said = _brief("\n".join(["what is wrong", *lines, "what to do"]))
    assert said.startswith("what is wrong") and said.endswith("what to do") and readable(said)


@quick
@given(
    st.recursive(
        TEXT | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=500),
        lambda x: st.lists(x, max_size=5) | st.dictionaries(TEXT, x, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_is_shown_in_80_characters(value):
    said = shown(value)
    assert len(said) <= 80 and said.isprintable()
    assert visible(said) == said


@pytest.mark.parametrize(
    "error, said",
    [
        (TimeoutError(), "TimeoutError"),
        (OSError(" \n"), "OSError"),
        (ValueError("\n what\nmore"), "what"),
        (ValueError("x" * 999), "x" * 300),
    ],
)
def test_the_first_line_of_an_error(error, said):
    assert first_line(error) == said


def test_what_cannot_be_written_is_named_by_its_type():
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    assert shown(10**5000) == "a value of type int" and shown(Odd()) == "a value of type Odd"
    assert shown("a" * 81) == "'" + "a" * 78 + "…" and shown("short") == "'short'"


@pytest.mark.slow
@quick
@given(
    st.sampled_from([*Job.__dataclass_fields__, "lrr"]) | TEXT,
    TEXT
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.lists(TEXT | st.booleans() | st.integers(), max_size=4),
)
def test_any_parameter_is_a_job_or_a_message(name, value):
    if name == "extensions":
        return  # names modules that would be imported
    try:
        assert isinstance(check({name: value}), Job)
    except ParameterError as e:
        assert readable(str(e))


@quick
@given(
    data=st.binary(max_size=400) | TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")),
    kind=st.sampled_from(["tsv", "csv", "jsonl", "parquet", "tsv.gz"]),
)
def test_any_bytes_are_rows_or_a_message(tmp_path, data, kind):
    path = tmp_path / f"own.{kind}"
    path.write_bytes(b"a\tb\n" + data if kind == "tsv" else data)
    try:
        found, first = read_columns(path, ["a", "b"])
    except DataError as e:
        assert readable(str(e)) and "own" in str(e)
    else:
        assert set(found) == {"a", "b"} and len(found["a"]) == len(found["b"])


@quick
@given(TEXT, st.lists(TEXT, max_size=200))
def test_an_unknown_name_is_a_message_among_any_names(name, names):
    assert readable(str(ParameterError(unknown("thing", name, names))))


def test_the_cause_is_kept(tmp_path):
    (tmp_path / "x.jsonl").write_text("{")
    (tmp_path / "x.tsv").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError) as raised:
        read_columns(tmp_path / "x.tsv", ["a"])
    assert isinstance(raised.value.__cause__, UnicodeDecodeError)


HANGING = """
import ctypes, sys
import macular.process as process
process._PATIENCE = 1.0
with process.ending(), process.SignalNote():
    print("begun", flush=True)
    if sys.argv[1] == "hangs":
        lib, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        lib.pthread_mutex_lock(mutex), lib.pthread_mutex_lock(mutex)
    import time
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # a step that takes longer, then saves
        time.sleep(0.1)
    print("saved")
"""


@pytest.mark.slow
@pytest.mark.parametrize("what,code,said", [("hangs", 143, ""), ("works", 0, "saved")])
def test_a_signal_ends_a_program_that_hangs_in_a_library_and_no_other(what, code, said):
    process = subprocess.Popen([sys.executable, "-c", HANGING, what], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (code, said)


# the record of a failure


@pytest.fixture
def job(tmp_path):
    return fill(check({"task": "pawsx", "method": "finetune", "preset": "mini", "out": str(tmp_path)}))


def doing(error=None):
    def do(job, more=0):
        with recorded(place(job), lambda event, facts: None) as watch:
            watch("step", {"phase": "net", "round": 1, "step": 9, "loss": 0.3})
            if error:
                raise error
            return more

    return do


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_job_leaves_its_error(job, kind):
    if kind is ParameterError:
        return
    with pytest.raises(kind):
        doing(kind("it is wrong. Do this."))(job)
    found = read_json(place(job) / "error.json")
    assert found == {
        "error": kind.__name__,
        "message": "it is wrong. Do this.",
        "exit_code": kind.exit_code,
        "hint": "Do this.",
        "where": {"during": "step", "phase": "net", "round": 1, "step": 9},
    }
    assert doing()(job, more=3) == 3 and not (place(job) / "error.json").exists()


def test_a_refused_parameter_leaves_nothing(job):
    with pytest.raises(ParameterError):
        doing(ParameterError("alpha is odd"))(job)
    assert not place(job).exists()


def test_a_bug_leaves_its_traceback(job):
    with pytest.raises(ZeroDivisionError):
        doing(ZeroDivisionError("a bug \ud800"))(job)
    found = read_json(place(job) / "error.json")
    assert (
        found["exit_code"] == 1
        and found["message"] == "a bug \\ud800"
        and "ZeroDivisionError" in found["traceback"]
        and str(Path.home()) + "/" not in found["traceback"]
    )


def test_nothing_private_is_recorded(job, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "canary-1234567")
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    said = f"{tmp_path}/ann/words.txt: canary-1234567 https://ann:pass@example.org hf_abcdefghijklmnop is wrong"
    with pytest.raises(DataError):
        doing(DataError(said))(job)
    text = (place(job) / "error.json").read_text()
    for secret in ("canary", "ann:pass", "hf_abc", str(tmp_path / "ann"), str(os.getpid()), os.uname().nodename):
        assert secret not in text, text
    assert read_json(place(job) / "error.json")["message"].startswith(
        "~/words.txt: *** https://***@example.org *** is wrong"
    )
    assert _anonymous("nothing to hide") == "nothing to hide"


def test_a_place_that_cannot_be_written_hides_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    job = fill(check({"task": "pawsx", "method": "finetune", "preset": "mini", "out": str(tmp_path / "file" / "runs")}))
    with pytest.raises(DataError, match="the real one"):
        doing(DataError("the real one"))(job)
    assert (tmp_path / "file").read_text() == ""


def test_a_stopped_job_has_not_failed(job):
    from macular.exceptions import Stopped

    with pytest.raises(Stopped):
        doing(Stopped("stopped in round 1"))(job)
    assert not (place(job) / "error.json").exists()


def test_a_sweep_and_a_job_tell_the_same(job):
    error = DataError("train.tsv has no rows. Fetch it again.")

    def do(job):
        return doing(error)(job)

    state = attempt(job, do)
    found = read_json(place(job) / "error.json")
    assert state["state"] == "failed" and {k: state[k] for k in failure(error)} == {k: found[k] for k in failure(error)}


def test_a_real_job_leaves_it_however_it_is_started(tmp_path):
    from macular.cli import main

    words = ["task=pawsx", "method=finetune", "preset=mini", "backbone=mini-xlmr"]
    words += [f"data_dir={tmp_path}/none", f"out={tmp_path}"]
    assert main(["sweep", "run", *words]) == 3
    [found] = tmp_path.glob("jobs/*/error.json")
    assert (
        read_json(found)["error"] == "DataError"
        and read_json(found.with_name("state.json"))["message"] == read_json(found)["message"]
    )


@pytest.mark.parametrize(
    "message, hint",
    [
        ("a is wrong", DataError.hint),
        ("a is wrong. Do this.", "Do this."),
        ("a is wrong.\nFirst this.\nThen that, in v1.2.", "Then that, in v1.2."),
    ],
)
def test_a_hint_is_the_last_thing_said(message, hint):
    assert failure(DataError(message))["hint"] == hint


def test_exit_codes_are_those_of_the_help():
    from macular.cli import app

    told = dict(re.findall(r"(\d) (\w+)", app.info.epilog))
    assert set(map(int, told)) >= {0, *(kind.exit_code for kind in KINDS[1:])} and "1 anything else" in app.info.epilog
