"""The notebooks as a set: clean, exported, small, readable, and safe to run as jobs."""
import ast
import json
import re
from pathlib import Path
from statistics import median

import nbformat
import papermill
import pytest
from conftest import ROOT, tool
from readme import FIGURES, figures, readme

NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_.]*.ipynb"))
JOBS = {"train", "pretrain", "bench", "study", "80_real", "acceptance", "72_decoupled", "howto_own_task"}  # run by papermill, with parameters
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"): return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]
def exported(path): return [c for c in cells(path) if re.match(r"#\| *exports?i?\b", c.source)]
def tags(cell): return cell.metadata.get("tags", [])
def outputs(path): return [o for c in cells(path) for o in c.outputs]
def lines(cell): return [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")]


def code_lines(source):
    "How many lines compute: no blank, comment or docstring, and a signature counts as one, so that documenting parameters costs nothing"
    told = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef): told |= set(range(node.lineno + 1, node.body[0].lineno))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in told for i, line in enumerate(source.splitlines(), 1))


def files(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".pyc"}


def changed(before, after): return sorted(str(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k))


# in step

def test_the_notebooks_are_there():
    names = {path.stem for path in NOTEBOOKS}
    assert {"index", "train", "00_core"} <= names


def test_cleaning_changes_nothing(project):
    before = {k: v for k, v in files(project / "nbs").items() if k.suffix == ".ipynb"}
    tool("nbdev-clean", project)
    assert changed(before, {k: v for k, v in files(project / "nbs").items() if k.suffix == ".ipynb"}) == [], "run nbdev-clean"


def test_exporting_changes_nothing(project):
    before = files(project / "macular")
    tool("nbdev-export", project)
    assert changed(before, files(project / "macular")) == [], "edit the notebook, then run nbdev-export"


def test_an_edited_module_is_noticed(project):
    module = project / "macular" / "core.py"
    before = files(project / "macular")
    module.write_text(module.read_text("utf-8").replace("MacularError", "MaculaError"), encoding="utf-8")
    edited = files(project / "macular")
    tool("nbdev-export", project)
    assert changed(edited, files(project / "macular")) == ["core.py"] and changed(before, files(project / "macular")) == []


def test_every_module_has_one_notebook():
    names = [m[1] for path in NOTEBOOKS for c in cells(path) if (m := re.match(r"#\| *default_exp +(\w+)", c.source))]
    modules = {p.stem for p in (ROOT / "macular").glob("*.py")} - {"__init__", "_modidx"}
    assert sorted(names) == sorted(modules)


def test_the_readme_is_the_index():
    assert (ROOT / "README.md").read_text("utf-8") == readme(), "run python tests/readme.py"
    there = {p.name: p.read_bytes() for p in FIGURES.iterdir()}
    assert there.pop("playground.png"), "taken by test_browser.py, which says how"
    assert there == figures(), "run python tests/readme.py"


def test_the_readme_names_every_notebook_and_links_what_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert {f"nbs/{path.name}" for path in NOTEBOOKS if path.stem != "index"} <= set(links), "run index.ipynb again"
    assert [link for link in links if not (ROOT / link).exists()] == []


@every
def test_links_lead_somewhere(path):
    links = [link for c in cells(path) if c.cell_type == "markdown" for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)\)", c.source)]
    assert [link for link in links if not (path.parent / link).exists()] == []


# jobs

@every
def test_only_jobs_have_parameters(path):
    assert sum("parameters" in tags(c) for c in cells(path)) == (path.stem in JOBS)
    assert not any("injected-parameters" in tags(c) for c in cells(path))


def parameters_of(path): return set(papermill.inspect_notebook(str(path)))


@pytest.fixture
def job(project):
    "A small notebook with a parameters cell, in a copy of the project"
    path = project / "nbs" / "a_job.ipynb"
    source = [nbformat.v4.new_markdown_cell("# a job\n\n> subtitle"),
              nbformat.v4.new_code_cell('task: str = "xnli"  # which one', metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=source, metadata={"kernelspec": {
        "name": "python3", "display_name": "python3", "language": "python"}}), path)
    return path


def test_cleaning_keeps_the_parameters_tag(project, job):
    assert parameters_of(job) == {"task"}
    tool("nbdev-clean", project)
    assert parameters_of(job) == {"task"}


def test_cleaning_would_remove_it_without_our_setting(project, job):
    config = project / "pyproject.toml"
    text = config.read_text("utf-8")
    config.write_text(text.replace('allowed_cell_metadata_keys = ["tags"]', ""), encoding="utf-8")
    assert config.read_text("utf-8") != text
    tool("nbdev-clean", project)
    assert parameters_of(job) == set()


@every
def test_a_notebook_never_exports_the_package_itself(path):
    assert not any("nbdev_export(" in c.source for c in cells(path))


# readable

@every
def test_it_opens_with_title_and_subtitle(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n\n> \S", first.source)


@every
def test_export_cells_are_short(path):
    assert [c.source for c in exported(path) if len(lines(c)) > 40] == []


def test_most_export_cells_are_very_short():
    assert median(code_lines(c.source) for path in NOTEBOOKS for c in exported(path)) <= 10


def test_documenting_a_parameter_costs_no_line():
    assert code_lines('#| export\ndef f(\n    x,  # what\n):  # that\n    "Doc"\n    # why\n\n    return x\n\ny = 1') == 3


@every
def test_imports_have_cells_of_their_own(path):
    for cell in exported(path):
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell.source).body}
        assert kinds != {True, False}, cell.source[:200]


# safe to commit

@every
def test_it_is_small(path):
    assert path.stat().st_size <= 500_000


@every
def test_outputs_are_static(path):
    assert "widgets" not in set(nbformat.read(path, as_version=4).metadata), "clear the widgets' outputs, and turn progress bars off"
    for output in outputs(path):
        assert output.output_type != "error"
        assert not any("javascript" in kind or "widget" in kind for kind in output.get("data", {}))
        assert "<script" not in json.dumps(output.get("data", {}).get("text/html", ""))


def private(text):
    "What of a text belongs to one machine only"
    return re.findall(rf"(?:/home/|/Users/|/tmp/|/var/|site-packages|[A-Z]:\\\\|{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/)\S*", text)


@every
def test_outputs_name_no_machine(path):
    text = "\n".join(json.dumps({k: v for k, v in o.get("data", {"text": o.get("text", "")}).items() if not k.startswith("image/")})
                     for o in outputs(path))
    assert private(text) == []


def test_a_private_path_is_noticed():
    assert private("saved to /home/ann/runs/x") and private(f"{ROOT}/runs") and not private("runs/xnli.ipynb at 3/4")
