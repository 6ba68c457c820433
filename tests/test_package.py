"""The installed package agrees with settings.ini, is safe to run, and is complete."""

import os
import re
import socket
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, entry_points, metadata, version
from zipfile import ZipFile

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import macular

INI = ConfigParser(interpolation=None)
INI.read(ROOT / "settings.ini", encoding="utf-8")
INI = INI["DEFAULT"]
RUN, DEV, DOCS = (
    [Requirement(r) for r in INI[name].split()] for name in ("requirements", "dev_requirements", "docs_requirements")
)
PINS = {
    canonicalize_name(name): pin
    for name, pin in (
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if line and not line.startswith("#")
    )
}

# The lowest version without a known hole that this project could be reached through. To be read again at every release.
FLOORS = {
    "torch": "2.10.0",  # weights_only bypass. 2.13.0 closes one more, in torch.jit, which is never called (test_layers)
    "transformers": "5.10.0",  # paths in save_pretrained; code from a config despite trust_remote_code=False (5.5.0)
    "datasets": "5.0.1",  # path traversal in folder builders
    "safetensors": "0.8.0",  # saving replaces the file as a whole
    "jupyterlab": "4.6.2",  # cross-site scripting, plugin lock bypass
    "jupyter-server": "2.21.0",  # stored cross-site scripting (2.20.0), Referer leak
    "notebook": "7.5.6",
    "nbconvert": "7.17.1",
    "mistune": "3.3.4",
    "tornado": "6.5.7",
    "pyarrow": "23.0.1",
    "filelock": "3.20.3",
    "ipython": "9.14",
    "jupyter-core": "5.8.1",
    "jinja2": "3.1.6",
    "pillow": "12.2",
    "urllib3": "2.6.3",
    "requests": "2.32.4",
    "ray": "2.54.0",
}  # a web page could stop jobs through the dashboard (CVE-2026-27482)


def requirement_lines(name):
    "(comment, requirement) pairs of a list in settings.ini"
    block = re.search(rf"^{name} =\n((?:    .*\n?)+)", (ROOT / "settings.ini").read_text("utf-8"), re.M)[1]
    return [line.strip() for line in block.splitlines()]


# metadata


def test_one_version():
    assert macular.__version__ == version("macular")


@pytest.mark.parametrize(
    "field, name", [("Summary", "description"), ("Author", "author"), ("License-Expression", "license")]
)
def test_metadata_is_that_of_settings(field, name):
    assert metadata("macular")[field] == INI[name]


IMPORTED_AS = {"sklearn": "scikit_learn"}  # where the name differs from the package's


def test_requirements_are_those_of_settings():
    said = {str(r) for r in map(Requirement, metadata("macular").get_all("Requires-Dist")) if r.marker is None}
    assert said == {str(r) for r in RUN} and metadata("macular")["Requires-Python"] == f">={INI['min_python']}"


@pytest.mark.parametrize("name", ["requirements", "dev_requirements", "docs_requirements"])
def test_every_requirement_stands_under_its_reason(name):
    groups = re.split(r"(?:^|\n)# .+\n", "\n".join(requirement_lines(name)))
    assert groups[0] == "" and all(1 <= len(group.split()) <= 3 for group in groups[1:])


def test_every_import_of_the_package_is_required():
    "Third-party packages that exported code imports are named in settings.ini"
    from test_layers import MODULES, of

    used = (
        {IMPORTED_AS.get(top, top) for path in MODULES for top, _ in of(path)}
        - set(sys.stdlib_module_names)
        - {"macular"}
    )
    known = {canonicalize_name(r.name).replace("-", "_") for r in RUN}
    # come with ipykernel, transformers and papermill
    pulled = {"IPython", "psutil", "tokenizers", "tqdm", "yaml", "nbformat"}
    optional = {"opencc", "jieba", "stanza", "ray"}  # asked for by an argument, whose error says how to install it
    assert used - known - pulled - optional == set()


def test_every_requirement_is_used():
    "Every requirement is imported by the package or a notebook, or runs notebooks"
    from test_layers import MODULES, imports
    from test_notebooks import NOTEBOOKS, cells

    sources = [p.read_text("utf-8") for p in MODULES] + [
        c.source for p in NOTEBOOKS for c in cells(p) if not c.source.startswith(("%", "!"))
    ]
    used = {IMPORTED_AS.get(top, top).lower() for text in sources for top, _ in imports(text)}
    runs, planned = {"jupyterlab", "ipykernel"}, {"seaborn", "ipywidgets"}
    assert {canonicalize_name(r.name).replace("-", "_") for r in RUN} - used - runs - planned == set()


def test_constraints_are_exact_and_allowed():
    for r in RUN + DEV + DOCS:
        assert r.specifier.contains(PINS[canonicalize_name(r.name)]), f"{r} against constraints.txt"
    assert all(re.fullmatch(r"[\w.]+", pin) for pin in PINS.values())


def installed(name):
    "The installed version of a package, or None"
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_no_version_with_a_known_hole():
    for versions in ({name: installed(name) for name in FLOORS}, PINS):
        low = {name: v for name in FLOORS if (v := versions.get(name)) and Version(v) < Version(FLOORS[name])}
        assert low == {}


# commands


def test_the_command_line_is_installed():
    scripts = {e.name: e.value for e in entry_points(group="console_scripts") if e.dist.name == "macular"}
    assert scripts == {"macular": "macular.cli:main", "nbdev_test": "nbdev.test:nbdev_test"}


# the shipped package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from conftest import copy_project

    project = copy_project(tmp_path_factory.mktemp("build") / "macular")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-w",
            project / "out",
            project,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return next((project / "out").glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    held = {name for name in ZipFile(wheel).namelist() if name.startswith("macular/")}
    here = {
        str(p.relative_to(ROOT)) for p in (ROOT / "macular").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert held == here
    assert any("LICENSE" in name for name in ZipFile(wheel).namelist()) and any(
        "NOTICE" in name for name in ZipFile(wheel).namelist()
    )


def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import macular, macular.core, macular.results.paper; print(macular.__file__); "
        "print(macular.results.paper.published('macular', 'qam'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path)), done.stderr


# the repository


def test_top_level():
    for name in (
        "nbs",
        "macular",
        "tests",
        "settings.ini",
        "setup.py",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
        "LICENSE",
        "NOTICE",
        "CITATION.cff",
        ".ci/run",
        ".github/workflows/test.yml",
        "runs/.gitkeep",
    ):
        assert (ROOT / name).exists(), name
    assert len((ROOT / "setup.py").read_text("utf-8").splitlines()) <= 25 and os.access(ROOT / ".ci/run", os.X_OK)


def test_licence_notice_and_citation():
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8") and INI["license"] == "Apache-2.0"
    notice, citation = (ROOT / "NOTICE").read_text("utf-8"), yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert "10.1145/3580305.3599864" in notice and "CC BY 4.0" in notice
    assert citation["cff-version"] == "1.2.0" and citation["references"][0]["doi"] == "10.1145/3580305.3599864"
    assert (
        len(citation["references"][0]["authors"]) == 5
        and citation["authors"]
        and citation["title"]
        and citation["message"]
    )


def test_ci_runs_the_line_of_the_readme():
    lines = re.findall(r"^python3.*nbdev_test.*pytest.*$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert len(lines) == 1 and ".venv" in lines[0] and "-c constraints.txt" in lines[0]
    assert "bash .ci/run" in (ROOT / ".github/workflows/test.yml").read_text("utf-8")


# the fence around the tests


def test_the_network_is_out_of_reach():
    with pytest.raises(pytest.fail.Exception, match="reached for the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(pytest.fail.Exception), socket.socket(socket.AF_INET6) as s:
        s.connect_ex(("2001:db8::1", 80))


def test_this_machine_is_not():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_hubs_are_offline_and_threads_few():
    assert os.environ["HF_HUB_OFFLINE"] and os.environ["TOKENIZERS_PARALLELISM"] and os.environ["OMP_NUM_THREADS"]
