"""The notebooks as a set: clean, exported, small, readable, and safe to run as jobs."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from statistics import median

import nbformat
import pytest
from conftest import ROOT, copy_project, tool
from readme import FIGURES, figures, readme

NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("[!_.]*.ipynb") if ".ipynb_checkpoints" not in p.parts)
JOBS = {
    "train",
    "pretrain",
    "study",
    "benchmarks/bench",
    "benchmarks/acceptance",
    "paper/03_decoupled",
    "paper/09_real",
    "howto/own_task",
}  # run by papermill, with parameters


parse = cache(ast.parse)


def named(path):
    "A notebook by its path below nbs/"
    return path.relative_to(NBS).with_suffix("").as_posix()


def of_all(test):
    "Return the findings of a check: notebook -> findings, of the notebooks that have any"
    return {named(path): found for path in NOTEBOOKS if (found := test(path))}


@cache
def notebook(path):
    "A notebook, read once for all tests, which change nothing in it"
    return nbformat.read(path, as_version=4)


def cells(path, kind="code"):
    return [c for c in notebook(path).cells if c.cell_type == kind]


def exported(path):
    return [c for c in cells(path) if re.match(r"#\| *exports?i?\b", c.source)]


def tags(cell):
    return cell.metadata.get("tags", [])


def outputs(path):
    return [o for c in cells(path) for o in c.outputs]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")]


def code_lines(source):
    """Count the lines that compute: no blank, comment or docstring, and a signature counts as one, so that documenting
    parameters costs nothing"""
    told = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.FunctionDef):
            told |= set(range(node.lineno + 1, node.body[0].lineno))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and i not in told
        for i, line in enumerate(source.splitlines(), 1)
    )


def files(folder):
    return {
        p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".pyc"
    }


def changed(before, after):
    return sorted(str(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k))


# in step


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    "One copy of the project for the tests whose commands must change nothing in it"
    return copy_project(tmp_path_factory.mktemp("untouched") / "macular")


@pytest.mark.slow
def test_cleaning_changes_nothing(untouched):
    before = {k: v for k, v in files(untouched / "nbs").items() if k.suffix == ".ipynb"}
    tool("nbdev-clean", untouched)
    assert changed(before, {k: v for k, v in files(untouched / "nbs").items() if k.suffix == ".ipynb"}) == [], (
        "run nbdev-clean"
    )


@pytest.mark.slow
def test_exporting_changes_nothing(untouched):
    before = files(untouched / "macular")
    tool("nbdev-export", untouched)
    assert changed(before, files(untouched / "macular")) == [], "edit the notebook, then run nbdev-export"


def exports(path):
    return [m[1] for c in cells(path) if (m := re.match(r"#\| *default_exp +([\w.]+)", c.source))]


def test_every_module_has_one_notebook_in_the_same_chapter():
    from test_layers import MODULES, module

    assert sorted(name for path in NOTEBOOKS for name in exports(path)) == sorted(map(module, MODULES))
    assert [
        named(path)
        for path in NOTEBOOKS
        for name in exports(path)
        if re.sub(r"\b\d\d_", "", named(path)) != name.replace(".", "/")
    ] == []


def test_a_number_is_used_once_in_a_folder():
    numbered = [(path.parent, path.stem[:2]) for path in NOTEBOOKS if path.stem[:2].isdigit()]
    assert len(numbered) == len(set(numbered))


def test_the_readme_is_the_index():
    assert (ROOT / "README.md").read_text("utf-8") == readme(), "run python tests/readme.py"
    there = {p.name: p.read_bytes() for p in FIGURES.iterdir()}
    assert there.pop("playground.png"), "taken by test_browser.py, which says how"
    assert there == figures(), "run python tests/readme.py"


def test_the_readme_names_every_notebook_and_links_what_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert {f"nbs/{named(path)}.ipynb" for path in NOTEBOOKS if path.stem != "index"} <= set(links), (
        "run index.ipynb again"
    )
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_links_lead_somewhere():
    def dead(path):
        links = [
            link for c in cells(path, "markdown") for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)\)", c.source)
        ]
        return [link for link in links if not (path.parent / link).exists()]

    assert of_all(dead) == {}


# jobs


def test_only_jobs_have_parameters():
    assert {named(path) for path in NOTEBOOKS for c in cells(path) if "parameters" in tags(c)} == JOBS
    assert of_all(lambda path: [c.source for c in cells(path) if "injected-parameters" in tags(c)]) == {}


def test_a_notebook_never_exports_the_package_itself():
    assert of_all(lambda path: [c.source for c in cells(path) if "nbdev_export(" in c.source]) == {}


# readable


def test_it_opens_with_title_and_subtitle():
    def bad(path):
        first = notebook(path).cells[0]
        return first.cell_type != "markdown" or not re.match(r"# \S.*\n\n> \S", first.source)

    assert of_all(bad) == {}


def test_export_cells_are_short():
    "At most 60 lines of one statement each, 120 where the cell is one class"

    def long(path):
        limit = {True: 120, False: 60}
        return [c.source for c in exported(path) if len(lines(c)) > limit[is_class(c.source)]]

    assert of_all(long) == {}


def is_class(source):
    "Return whether a cell holds nothing but one class"
    return [type(node) for node in parse(source).body] == [ast.ClassDef]


def body_lines(function):
    "Lines of a function below its signature, its docstring aside"
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    def long(path):
        nodes = [node for c in exported(path) for node in ast.walk(parse(c.source))]
        return [f.name for f in nodes if isinstance(f, ast.FunctionDef) and body_lines(f) > 40]

    assert of_all(long) == {}


def test_most_export_cells_are_very_short():
    assert median(code_lines(c.source) for path in NOTEBOOKS for c in exported(path)) <= 16


def test_documenting_a_parameter_costs_no_line():
    assert (
        code_lines('#| export\ndef f(\n    x,  # what\n):  # that\n    "Doc"\n    # why\n\n    return x\n\ny = 1') == 3
    )


def test_imports_have_cells_of_their_own():
    def mixed(path):
        found = [
            (c.source, {isinstance(node, (ast.Import, ast.ImportFrom)) for node in parse(c.source).body})
            for c in exported(path)
        ]
        return [source[:200] for source, kinds in found if kinds == {True, False}]

    assert of_all(mixed) == {}


# safe to commit


def test_it_is_small():
    assert of_all(lambda path: path.stat().st_size > 500_000) == {}


def test_outputs_are_static():
    def moving(path):
        if "widgets" in set(notebook(path).metadata):
            return "clear the widgets' outputs, and turn progress bars off"
        return [
            o
            for o in outputs(path)
            if o.output_type == "error"
            or "<script" in json.dumps(o.get("data", {}).get("text/html", ""))
            or any("javascript" in kind or "widget" in kind for kind in o.get("data", {}))
        ]

    assert of_all(moving) == {}


def private(text):
    "List the paths in a text that belong to one machine"
    return re.findall(
        rf"(?:/home/|/Users/|/tmp/|/var/|site-packages|[A-Z]:\\\\|{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/)\S*",
        text,
    )


def test_outputs_name_no_machine():
    def shown(path):
        return "\n".join(
            json.dumps(
                {k: v for k, v in o.get("data", {"text": o.get("text", "")}).items() if not k.startswith("image/")}
            )
            for o in outputs(path)
        )

    assert of_all(lambda path: private(shown(path))) == {}


def test_a_private_path_is_noticed():
    assert private("saved to /home/ann/runs/x") and private(f"{ROOT}/runs") and not private("runs/xnli.ipynb at 3/4")
