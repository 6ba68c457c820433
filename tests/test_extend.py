"""Records of one's own: defined twice in a notebook, and known to a fresh kernel on a Ray worker."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from macular.core import Registry
from macular.exceptions import ParameterError
from macular.model.losses import Objective, term, terms
from macular.train.config import check
from macular.train.inputs import Data
from macular.train.methods import Method, finetune, methods
from macular.train.run import preview, run

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
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


@pytest.mark.slow
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


# terms of one's own


@pytest.fixture
def own():
    "A function that makes the job of a method with a term of one's own, which is forgotten after the test"
    made = []

    def job(loss, method=finetune, **changes):
        term("mine")(loss)
        methods.add(method.derive("with_mine", terms=method.terms | {"mine": 1.0}))
        made.append(1)
        small = {"task": "pawsx", "preset": "mini", "max_train": 32, "rounds": 1, "langs": "de"}
        return check(small | {"method": "with_mine"} | changes)

    yield job
    for registry, name in ((terms, "mine"), (methods, "with_mine")):
        if made:
            registry._records.pop(name)


ASKED = [
    (lambda logitz, y: logitz.mean(), "finetune", "unknown output 'logitz'. Did you mean 'logits'? There is: as"),
    (lambda logits_aug, y: logits_aug.mean(), "finetune", "asks for 'logits_aug', but 'with_mine' has no augmentation"),
    (lambda e_copy: e_copy.mean(), "cosda_ml", "asks for 'e_copy', but 'with_mine' makes no copies with near-synonyms"),
    (lambda d: d.mean(), "cosda_ml", "asks for 'd', but 'with_mine' has no adversary"),
    (lambda logits_near: logits_near.mean(), "finetune", "asks for 'logits_near', but there is no neighbouring task"),
    (lambda tree: tree.mean(), "finetune", "asks for 'tree', but 'with_mine' has no syntax encoder"),
    (lambda teacher: teacher.mean(), "finetune", "asks for 'teacher', but there is no teacher"),
    (lambda e_aug: e_aug.mean(), "prompt", "asks for 'e_aug', but a cloze of changed texts is not built"),
]


@pytest.mark.parametrize("loss, method, said", ASKED, ids=[said for *_, said in ASKED])
def test_an_output_that_is_not_there_is_refused_before_loading(own, tmp_path, monkeypatch, loss, method, said):
    job = own(loss, methods[method], out=str(tmp_path / "runs"))
    monkeypatch.setattr(Data, "backbone", property(lambda data: pytest.fail("the backbone was read")))
    for go in (run, preview):
        with pytest.raises(ParameterError) as e:
            go(job)
        assert said in str(e.value) and "the term 'mine' of 'with_mine'" in str(e.value)
    assert not (tmp_path / "runs" / "trainings").exists()


RETURNED = [
    (lambda logits: logits.sum(-1), "returned a tensor of shape (32,) and type float32"),
    (lambda logits: logits.mean().item(), "returned float"),
    (lambda logits: None, "returned NoneType"),
    (lambda logits: logits.argmax(), "type int64"),
    (lambda logits: (logits.mean(), {}), "returned tuple"),
]


@pytest.mark.parametrize("loss, said", RETURNED, ids=[said for _, said in RETURNED])
@pytest.mark.slow
def test_what_is_no_number_is_refused_at_the_first_step_by_name(own, tmp_path, loss, said):
    steps = []
    with pytest.raises(ParameterError, match="the term 'mine' returned") as e:
        run(own(loss, out=str(tmp_path)), lambda event, facts: steps.append(event) if event == "step" else None)
    assert said in str(e.value) and "a loss is a tensor with one number" in str(e.value) and steps == []


def test_a_loss_that_nothing_changes_is_refused(own, tmp_path):
    job = own(lambda logits: torch.zeros(()), Method("bare", terms={}), out=str(tmp_path))
    with pytest.raises(ParameterError, match="phase 'net': no parameter that it trains changes mine"):
        run(job, lambda event, facts: None)


def test_an_error_inside_a_term_names_the_term(own):
    def loss(logits, y):
        raise ValueError("my own bug")

    own(loss)
    with pytest.raises(ValueError, match="my own bug") as e:
        Objective({"mine": 1.0})({"logits": torch.zeros(2, 2), "y": torch.zeros(2).long()})
    assert e.value.__notes__ == ["in the term 'mine'"]


@pytest.mark.slow
def test_a_parameter_with_a_default_is_a_setting_of_the_loss(own, tmp_path):
    def loss(logits, y, gamma=2.0):
        return gamma * logits.square().mean()

    assert run(own(loss, out=str(tmp_path)), lambda event, facts: None).accuracy["pawsx"].keys() == {"en", "de"}


@pytest.mark.parametrize(
    "loss, said",
    [
        (lambda *outputs: 0, "has the parameter '\\*outputs'"),
        (lambda logits, **more: 0, "has the parameter '\\*\\*more'"),
        (lambda logits, /: 0, "has the parameter 'logits'"),
        (3, "is no function with named parameters"),
    ],
)
def test_a_term_has_named_parameters(loss, said):
    with pytest.raises(ParameterError, match=f"the term 'mine'.*{said}"):
        term("mine")(loss)
    assert "mine" not in terms


def test_a_term_without_a_name():
    with pytest.raises(ParameterError, match='a term needs a name: @term\\("name"\\)'):

        @term
        def mine(logits, y):
            return logits.mean()


def test_a_term_without_source_is_refused(own, tmp_path):
    loss = eval("lambda logits: logits.square().mean()")  # as typed at a prompt
    with pytest.raises(ParameterError, match="the source of the term 'mine' is part of the training's key"):
        run(own(loss, out=str(tmp_path)), lambda event, facts: None)


@pytest.mark.parametrize("name", methods)
def test_every_term_of_the_library_has_its_outputs(name):
    "With a neighbour, and for a student with its teacher"
    for part in filter(None, (methods[name], methods.get(methods[name].shared or ""))):
        for loss in part.active():
            terms[loss].check(part.outputs(), part.name)
