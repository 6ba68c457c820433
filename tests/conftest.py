"""Every test runs offline, on one thread per process, from a copy where it would change files."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest

# before anything heavy is imported; a caller's own setting wins
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}.items():
    os.environ.setdefault(name, value)

# a shell lets what it starts in the background ignore SIGINT; some tests send it, and want it heard
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = str(ROOT / "tests" / "without")  # hides a package that is slow to import, here and in what a test starts
sys.path.insert(0, WITHOUT)
os.environ["PYTHONPATH"] = os.pathsep.join([WITHOUT, *filter(None, [os.environ.get("PYTHONPATH")])])


def is_loopback(host):
    "Return whether a socket address stays on this machine"
    host = host.decode() if isinstance(host, bytes) else host
    if host in ("localhost", ""):
        return True
    try:
        return ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def guarded(method):
    "A socket method that fails the test when it would leave this machine"

    def only_loopback(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            pytest.fail(f"a test reached for the network: {address}")
        return method(self, address, *rest)

    return only_loopback


socket.socket.connect, socket.socket.connect_ex = guarded(socket.socket.connect), guarded(socket.socket.connect_ex)


def copy_project(folder):
    "The project's files in another folder, without runs and caches"
    skip = shutil.ignore_patterns(
        ".git",
        ".venv",
        "runs",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        ".ipynb_checkpoints",
        "_proc",
        "_docs",
        ".last_checked",
    )
    shutil.copytree(ROOT, folder, ignore=skip)
    (folder / "runs").mkdir()
    return folder


def tool(name, cwd, **env):
    "Run one of nbdev's commands in a project and return what it printed"
    done = subprocess.run(
        [Path(sys.executable).with_name(name)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JUPYTER_DATA_DIR": str(Path(cwd) / ".jupyter")} | env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SLOW_FIXTURES = {
    "wheel",
    "finished",  # a job that is trained
    "legs",
    "elsewhere",  # a job in a process of its own
    "run_folder",
    "once",
    "done",
    "cluster",  # Ray
    "mbert",  # 30,000 sentences
    "shared",  # real data
}


# the files that take longest, in this order, so that two workers end at the same time; the others follow by name
LONGEST = "browser resume load jobs papermill model distill trainer mini site phases switch packing run".split()


def pytest_configure(config):
    "Let pytest-xdist hand out the files in the order below, not by their number of tests"
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def place(item):
    "Return the place of a test's file among those that take longest"
    name = item.path.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items):
    "Mark as slow what asks for a slow fixture, and cases beyond `quick_cases(n)`; put the longest files first"
    cases = Counter()
    for item in items:
        quick = item.get_closest_marker("quick_cases")
        cases[item.path, item.originalname] += 1
        if SLOW_FIXTURES & set(item.fixturenames) or quick and cases[item.path, item.originalname] > quick.args[0]:
            item.add_marker(pytest.mark.slow)
    items.sort(key=place)


def pytest_collection_finish():
    "Take the objects of all imports, which live to the end, out of the garbage collector's sight"
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root():
    "The folder with settings.ini"
    return ROOT


@pytest.fixture(scope="session")
def shared():
    "The folder of real data beside the repository; tests that need it are skipped where it is absent"
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data is not there (../shared/data)")
    return path
