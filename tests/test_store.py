"""The store under everything a disk and another process can do: the old content or the new, never a part, never
silently the wrong one."""

import ast
import builtins
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from conftest import ROOT
from test_layers import MODULES, module

from macular import store
from macular.exceptions import StorageError
from macular.store import (
    _FORMAT,
    MANIFEST,
    ForeignFolder,
    append,
    append_text,
    clear,
    lock,
    newest,
    read_json,
    read_lines,
    rename_into_place,
    sealed_folder,
    verify,
    write_bytes,
    write_json,
)

EARLY = ROOT / "tests" / "data" / "format-1"  # written by the first version of the store; never made again
LEFT = re.compile(r"\..+\.(tmp|old)")


@pytest.fixture
def tmp_path():
    "In memory where there is such a place: `fsync` costs nothing there, and the tests make hundreds of folders"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def held(folder):
    with lock(folder):
        pass


def filled(folder, **files):
    with sealed_folder(folder) as aside:
        for name, content in (files or {"a": "1"}).items():
            (aside / name).write_text(content)


@pytest.mark.parametrize(
    "write",
    [lambda p: write_json(p, 1), lambda p: append(p, {}), held, filled],
    ids=["write_json", "append", "lock", "staged"],
)
def test_below_a_file(tmp_path, write):
    file = tmp_path / "README.md"
    file.write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        write(file / "runs")
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.json" / "b").mkdir(parents=True)
    with pytest.raises(StorageError, match="unchanged"):
        write_json(tmp_path / "a.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json" / "b").is_dir()


def test_every_file_is_read_once_to_seal_a_folder(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(store, "sha256", lambda path, sum=store.sha256: read.append(path.name) or sum(path))
    with sealed_folder(tmp_path / "new") as aside:
        for name in "abc":
            (aside / name).write_text(name)
    assert sorted(read) == ["a", "b", "c"]
    verify(tmp_path / "new")


# places that cannot be written

WRITERS = {
    "write_bytes": lambda p: write_bytes(p, b"new"),
    "append": lambda p: append(p, {"new": 1}),
    "staged": filled,
    "lock": held,
    "put": lambda p: rename_into_place(Path(__file__), p),
}


@pytest.mark.parametrize("name", ["write_bytes", "append", "staged", "lock"])
@pytest.mark.parametrize(
    "last", ["x" * 300, "ü" * 200, "a/" * 2500, "nul\0"], ids=["300 letters", "400 bytes", "5000 bytes", "NUL"]
)
def test_names_no_disk_has(tmp_path, name, last):
    with pytest.raises(StorageError, match="cannot write"):
        WRITERS[name](tmp_path / last)
    assert [p for p in tmp_path.iterdir() if p.name != "a"] == []


def test_a_name_as_long_as_the_disk_allows(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"
    filled(tmp_path / ("y" * 255))
    filled(tmp_path / ("y" * 255), a="2")
    verify(tmp_path / ("y" * 255))


def test_a_link_in_the_place_of_a_folder(tmp_path):
    filled(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="a file of this name exists"):
        filled(tmp_path / "link", a="2")
    assert (tmp_path / "real" / "a").read_text() == "1" and sorted(p.name for p in tmp_path.iterdir()) == [
        "link",
        "real",
    ]
    verify(tmp_path / "real")


@contextmanager
def mounted(folder, *options):
    "A small disk of its own"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def tensors(folder):
    import torch
    from safetensors.torch import save_file

    with sealed_folder(folder) as aside:
        save_file({"w": torch.zeros(100_000)}, aside / "net.safetensors")


def fill_up(path):
    for i in range(100_000):
        append(path, {"line": i, "more": "x" * 500})


@pytest.mark.parametrize(
    "name,write",
    {
        "a.bin": lambda p: write_bytes(p, bytes(400_000)),
        "history.jsonl": fill_up,
        "folder": lambda p: filled(p, a="x" * 400_000),
        "state-1": tensors,
    }.items(),
)
def test_a_full_disk(tmp_path, name, write):
    "The old content is whole, nothing half-written stays, and the error says how much is free"
    with mounted(tmp_path / "disk") as disk:
        if name == "history.jsonl":
            append(disk / name, {"line": -1})
        elif name == "a.bin":
            write_bytes(disk / name, b"old")
        else:
            filled(disk / name, old="old")
        (disk / "ballast").write_bytes(bytes(200_000))
        with pytest.raises(StorageError, match=r"(?i)no space left on device.*\((\d|\.)+ MB are free\)") as e:
            write(disk / name)
        assert e.value.exit_code == 5 and str(disk / name) in str(e.value)
        assert [p for p in disk.iterdir() if LEFT.match(p.name)] == []
        if name == "history.jsonl":
            assert (disk / name).read_bytes().endswith(b"}\n") and [r["line"] for r in read_lines(disk / name)][:2] == [
                -1,
                0,
            ]
        elif name == "a.bin":
            assert (disk / name).read_bytes() == b"old"
        else:
            assert list(verify(disk / name)["files"]) == ["old"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_cannot_be_written(tmp_path, name):
    with mounted(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match="Read-only|cross-device"):
            WRITERS[name](disk / "a")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("name", ["write_bytes", "append", "staged", "lock"])
def test_a_folder_of_somebody_elses(tmp_path, name):
    "Write into another user's folder, from a child that is nobody where the tests run as root"
    tmp_path.chmod(0o755)

    def work():
        if os.getuid() == 0:
            os.setuid(65534)
        else:
            tmp_path.chmod(0o555)
        with pytest.raises(StorageError, match="Permission denied"):
            WRITERS[name](tmp_path / "a")

    assert forked(work) == 0 and list(tmp_path.iterdir()) == []


def forked(work, wait=True):
    "Work in a child; its exit code, or the child where it is not waited for"
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if wait else pid
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


# a disk that cannot flush folders


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_folders_warns_once(tmp_path, monkeypatch, code):
    flush = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(store, "_unconfirmed", [])
    with pytest.warns(UserWarning, match="cannot confirm writes") as told:
        write_json(tmp_path / "a.json", 1)
        write_json(tmp_path / "b.json", 2)
        with store.sealed_folder(tmp_path / "c-1") as aside:
            (aside / "inner").mkdir()
            (aside / "inner" / "x").write_bytes(b"x")
    assert len(told) == 1 and read_json(tmp_path / "b.json") == 2 and newest(tmp_path, "c").name == "c-1"


def test_a_folder_that_cannot_be_opened_for_flushing_warns(tmp_path, monkeypatch):
    "As on Windows, where `os.open` of a folder is refused"
    opened = os.open

    def files_only(path, flags, *more, **named):
        if flags == os.O_RDONLY and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(store, "_unconfirmed", [])
    monkeypatch.setattr(os, "open", files_only)
    with pytest.warns(UserWarning, match="cannot confirm writes"):
        write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1


def test_a_disk_that_fails_to_flush_a_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageError, match="Input/output error"):
        write_json(tmp_path / "a.json", 1)


# who may read, and what can be foreseen


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_open_to_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        append(tmp_path / "log", {})
        tensors(tmp_path / "state-1")
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 4 and {p.stat().st_mode & 0o777 for p in files} == {0o666 & ~umask}
    assert (tmp_path / "state-1").stat().st_mode & 0o777 == 0o777 & ~umask


def test_names_beforehand_are_drawn(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "replace", lambda a, b, real=os.replace: (seen.append(Path(a).name), real(a, b)))
    for _ in range(20):
        write_bytes(tmp_path / "a", b"1")
    assert len(set(seen)) == 20 and all(re.fullmatch(r"\.a\.[0-9a-f]{16}\.tmp", name) for name in seen)


@pytest.mark.parametrize("name", ["write_bytes", "staged"])
def test_a_link_planted_at_the_name_is_not_followed(tmp_path, name, monkeypatch):
    "Even where the name is known, which takes this patch"
    monkeypatch.setattr(store.secrets, "token_hex", lambda n: "0" * 2 * n)
    victim = tmp_path / "victim"
    victim.mkdir() if name == "staged" else victim.write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f".a.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(StorageError, match="File exists"):
        WRITERS[name](tmp_path / "runs" / "a")
    assert victim.is_dir() and not list(victim.iterdir()) if name == "staged" else victim.read_text() == "mine"


def test_a_link_planted_for_the_writers_note_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".writer").symlink_to(tmp_path / "mine")
    with lock(tmp_path / "runs"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


# damage


@pytest.fixture
def state(tmp_path):
    "A checkpoint of today's format with a folder in it"
    with sealed_folder(tmp_path / "state-7") as aside:
        for p in (EARLY / "state-7").iterdir():
            if p.name != MANIFEST:
                shutil.copy(p, aside)
        (aside / "sub").mkdir()
        (aside / "sub" / MANIFEST).write_text("{}")
    verify(tmp_path / "state-7")
    return tmp_path / "state-7"


def everything(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("where", ["0", "1 byte", "10 %", "50 %", "90 %", "99.9 %", "all but 1 byte"])
def test_truncated(state, where):
    for path in everything(state):
        whole = path.read_bytes()
        n = {"0": 0, "1 byte": 1, "all but 1 byte": len(whole) - 1}.get(where)
        path.write_bytes(whole[: int(len(whole) * float(where.split()[0]) / 100) if n is None else n])
        if (
            path.read_bytes() == whole
            or path.name == MANIFEST
            and whole.startswith(path.read_bytes())
            and path.read_bytes().rstrip() == whole.rstrip()
        ):
            path.write_bytes(whole)
            continue  # the last line break of the manifest alone
        with pytest.raises(StorageError) as e:
            verify(state)
        assert path.name in str(e.value) and "Traceback" not in str(e.value)
        path.write_bytes(whole)
    verify(state)


def test_every_flipped_bit_is_found(state):
    draw, found = random.Random(0), 0
    for path in everything(state):
        whole = path.read_bytes()
        for at in [draw.randrange(8 * len(whole)) for _ in range(60)]:
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(StorageError):
                verify(state)
            found += 1
        path.write_bytes(whole)
    verify(state)
    assert found == 60 * 7


def test_without_the_manifest_a_flipped_bit_loads(state):
    "The negative control: the tensor format itself does not notice"
    from safetensors.torch import load_file

    path = state / "net.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 4
    path.write_bytes(damaged)
    assert load_file(path)


def test_the_message_names_file_and_sums(state):
    (state / "net.safetensors").write_bytes(b"x")
    with pytest.raises(
        StorageError, match=r"net\.safetensors \(SHA-256 \w{12}… expected, SHA-256 \w{12}… found\); in all 1 of 6 files"
    ):
        verify(state)


def test_missing_extra_and_swapped_files(state):
    for path in everything(state):
        path.rename(state.parent / "away")
        with pytest.raises(StorageError):
            verify(state)
        (state.parent / "away").rename(path)
    for extra in ("extra", "sub/extra", f"sub/sub/{MANIFEST}"):
        (state / extra).parent.mkdir(exist_ok=True)
        (state / extra).write_text("")
        with pytest.raises(StorageError, match="not listed expected"):
            verify(state)
        (state / extra).unlink()
    a, b = state / "net.safetensors", state / "discriminator.safetensors"
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two), b.write_bytes(one)
    with pytest.raises(StorageError, match="in all 2 of 6"):
        verify(state)


BAD = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "no files": '{"format": 2, "name": "state-7"}',
    "files is a list": '{"format": 1, "files": []}',
    "above": '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": "0"}}}',
    "absolute": '{"format": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}}',
    "odd entries": '{"format": 1, "files": {"net.safetensors": [], "x": null, "y": 3}}',
    "deep": "[" * 100_000,
    "another key": '{"format": 2, "name": null, "files": {}, "x": 1}',
    "very many entries": None,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest(state, name, monkeypatch):
    "Nothing outside the folder is read, whatever a manifest names"
    (state / MANIFEST).write_text(
        BAD[name]
        if BAD[name] is not None
        else f'{{"format": 1, "files": {{{",".join(f""""{i}":0""" for i in range(10**5))}}}}}'
    )
    read = []
    monkeypatch.setattr(store, "sha256", lambda path, sum=store.sha256: read.append(path) or sum(path))
    with pytest.raises(StorageError) as e:
        verify(state)
    assert all(p.is_relative_to(state) for p in read) and len(str(e.value)) < 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.symlink_to("/etc/passwd"),
        lambda p: p.symlink_to("/etc"),
        lambda p: p.symlink_to("net.safetensors"),
        lambda p: p.symlink_to("gone"),
        os.mkfifo,
    ],
    ids=["to a file", "to a folder", "inside", "dangling", "a pipe"],
)
def test_links_and_pipes_inside_are_refused(state, make):
    make(state / "link")
    with pytest.raises(StorageError, match="holds link, which is not a plain file"):
        verify(state)


def test_a_file_that_became_a_link(state):
    (state / "net.safetensors").rename(state.parent / "net")
    (state / "net.safetensors").symlink_to(state.parent / "net")
    with pytest.raises(StorageError, match="not a plain file"):
        verify(state)


def test_links_on_the_way_are_followed(state):
    (state.parent / "link").symlink_to(state.parent)
    assert newest(state.parent / "link", "state").name == "state-7"


@pytest.mark.parametrize(
    "version,error",
    [
        (_FORMAT + 1, ForeignFolder),
        (99, ForeignFolder),
        (0, StorageError),
        (-1, StorageError),
        (None, StorageError),
        ("2", StorageError),
        (True, StorageError),
        (1.0, StorageError),
        ([], StorageError),
    ],
)
def test_other_versions(state, version, error):
    "Both versions are named; what a newer one wrote is never skipped as if it were damaged"
    manifest = read_json(state / MANIFEST)
    (state / MANIFEST).write_text(
        json.dumps(
            manifest | {"format": version}
            if version is not None
            else {k: v for k, v in manifest.items() if k != "format"}
        )
    )
    with pytest.raises(
        StorageError, match=re.escape(f"has format {str(version)!r}; this version reads format 1 and 2")
    ) as e:
        verify(state)
    assert type(e.value) is error
    if error is ForeignFolder:
        with pytest.raises(ForeignFolder, match="newer"):
            newest(state.parent, "state")
    else:
        with pytest.warns(UserWarning, match="It is skipped"):
            assert newest(state.parent, "state") is None


def test_exchanged_checkpoints(tmp_path):
    for n in (1, 2):
        filled(tmp_path / f"state-{n}", a=str(n))
    (tmp_path / "state-1").rename(tmp_path / "spare")
    (tmp_path / "state-2").rename(tmp_path / "state-1")
    (tmp_path / "spare").rename(tmp_path / "state-2")
    with pytest.raises(ForeignFolder, match="was written as state-1"):
        newest(tmp_path, "state")
    for n in (1, 2):
        (tmp_path / f"state-{n}" / MANIFEST).rename(tmp_path / str(n))  # now the manifests, too
    for n in (1, 2):
        (tmp_path / str(n)).rename(tmp_path / f"state-{3 - n}" / MANIFEST)
    with pytest.warns(UserWarning, match="It is skipped"):
        assert newest(tmp_path, "state") is None


def test_what_may_be_moved(tmp_path):
    with sealed_folder(tmp_path / "model", movable=True) as aside:
        (aside / "a").write_text("1")
    verify((tmp_path / "model").rename(tmp_path / "mine"))


def test_a_damaged_checkpoint_is_told_and_an_earlier_one_found(tmp_path):
    for n in (1, 2, 3):
        filled(tmp_path / f"state-{n}", a=str(n))
    (tmp_path / "state-3" / "a").write_text("4")
    with pytest.warns(UserWarning, match="state-3 does not match its manifest: a .*skipped"):
        assert newest(tmp_path, "state").name == "state-2"


def test_a_checkpoint_of_the_first_format(tmp_path):
    "Kept for ever: it verifies, its training goes on, and ends where one that was never stopped does"
    import tiny_training
    import torch

    assert (
        sum(p.stat().st_size for p in EARLY.rglob("*")) < 100_000
        and read_json(EARLY / "state-7" / MANIFEST)["format"] == 1
    )
    shutil.copytree(EARLY, tmp_path / "old")
    assert newest(tmp_path / "old", "state").name == "state-7" and verify(tmp_path / "old" / "round-1")
    steps = []
    records, nets = tiny_training.train(tmp_path / "old", on_step=lambda line: steps.append(line["step"]))
    wanted, whole = tiny_training.train(tmp_path / "new")
    assert steps == [8, 9, 10, 11, 12] and records == wanted == [{"round": n, "so far": n} for n in (1, 2, 3)]
    for name, net in whole.items():
        for a, b in zip(net.parameters(), nets[name].parameters(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)
    assert {p.name: verify(p)["format"] for p in (tmp_path / "old").glob("*-*")} == {
        "round-1": 1,
        "round-2": _FORMAT,
        "round-3": _FORMAT,
        "state-12": _FORMAT,
    }


# a log


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 2, "lo', b'{"step": 2}', b"\xff\xfe\0", b'{"step": "\xc3'])
def test_a_torn_last_line(tmp_path, torn):
    log = tmp_path / "history.jsonl"
    append(log, {"step": 1})
    with open(log, "ab") as f:
        f.write(torn)
    append(log, {"step": 3})
    steps = [r["step"] for r in read_lines(log)]
    assert steps == ([1, 2, 3] if torn.endswith(b"}") else [1, 3]) and log.read_bytes().endswith(b'\n{"step": 3}\n')


def test_a_log_that_is_no_file(tmp_path):
    assert read_lines(tmp_path / "gone") == []
    with pytest.raises(StorageError, match="cannot read"):
        read_lines(tmp_path)


def test_lines_of_text(tmp_path):
    append_text(tmp_path / "log.txt", "one\ntwo")
    append_text(tmp_path / "log.txt", "\ud800 is no letter")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n? is no letter\n"


# every call of the system, one after the other: killed there, or refused

CALLS = [(os, name) for name in ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "chmod")] + [
    (store, "_exchange")
]


@contextmanager
def watched(before):
    "Call `before(name)` ahead of every call that changes a disk; of a write, after its first half"

    class Torn(io.FileIO):
        def write(self, data):
            data = bytes(data)
            done = super().write(data[: len(data) // 2])
            before("write")
            return done + super().write(data[len(data) // 2 :])

    def opened(path, mode="r", buffering=-1, *more, real=builtins.open, **named):
        if not set(mode) & set("xwa"):
            return real(path, mode, buffering, *more, **named)
        before("open")
        raw = Torn(path, mode.replace("b", ""))
        return (
            raw
            if buffering == 0
            else io.BufferedWriter(raw)
            if "b" in mode
            else io.TextIOWrapper(io.BufferedWriter(raw), "utf-8")
        )

    with pytest.MonkeyPatch.context() as m:
        for module, name in CALLS:
            m.setattr(
                module, name, lambda *a, real=getattr(module, name), name=name, **k: (before(name), real(*a, **k))[1]  # noqa: B008 — today's function
            )
        for module in (builtins, io):
            m.setattr(module, "open", opened)
        yield


CONTENT = {"old": {"a": "old " * 50, "b": "old"}, "new": {"a": "new " * 70, "c": "new"}}


def save(folder, which):
    "All the store does, once: a folder, a file and a line, by the one writer"
    with lock(folder):
        filled(folder / "state-1", **CONTENT[which])
        write_json(folder / "result.json", which)
        append(folder / "history.jsonl", {"saved": which})
        clear(folder)


def seen(folder):
    "Return the versions of folder and file that a reader finds; nothing else is left after the next writer"
    with lock(folder):
        pass
    assert [p.name for p in folder.iterdir() if LEFT.match(p.name)] == []
    manifest = verify(folder / "state-1")
    found = {name: (folder / "state-1" / name).read_text() for name in manifest["files"]}
    [kind] = [k for k in CONTENT if CONTENT[k] == found]
    lines = [r["saved"] for r in read_lines(folder / "history.jsonl")]
    assert lines in (["old"], ["old", "new"])
    return kind, read_json(folder / "result.json"), lines[-1]


@pytest.fixture(params=["in one step", pytest.param("in two", marks=pytest.mark.slow)])
def replacing(request, tmp_path, monkeypatch):
    "As the system does it, and as on a disk that cannot exchange names"
    if request.param == "in two":
        monkeypatch.setattr(store, "_exchange", lambda a, b: False)
    else:
        for name in "ab":
            (tmp_path / name).mkdir()
        if not store._exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this system cannot exchange two names")


def killed_at(folder, n):
    "Save in a child that dies at its n-th call; whether it got so far"
    calls = count()

    def before(name):
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        with watched(before):
            save(folder, "new")

    return forked(work) != 0


def fresh(folder):
    "A folder with the old content; the first one is made by the store, the next are copies"
    template = folder.with_name("template")
    if not template.exists():
        save(template, "old")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    return folder


@pytest.mark.slow
def test_killed_at_every_call(tmp_path, replacing):
    "SIGKILL: a reader finds the old or the new, never neither, never a mixture"
    kinds = []
    for n in count():
        died = killed_at(fresh(tmp_path / "run"), n)
        kinds.append(seen(tmp_path / "run"))
        if not died:
            break
    assert n > 30 and kinds[0] == ("old",) * 3 and kinds[-1] == ("new",) * 3
    assert [k.count("new") for k in kinds] == sorted(k.count("new") for k in kinds) and len(set(kinds)) == 4, (
        "once new, it stays new"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_refused_at_every_call(tmp_path, replacing, code):
    "No space, or a broken disk: an error of ours, and what stood there, or the new"
    kinds, refused = [], 0
    for n in count():
        calls = count()

        def before(name, n=n, calls=calls):
            if next(calls) == n:
                raise OSError(code, os.strerror(code))

        fresh(tmp_path / "run")
        with watched(before):
            try:
                save(tmp_path / "run", "new")
            except StorageError as e:
                refused += 1
                assert str(tmp_path / "run") in str(e) and os.strerror(code) in str(e)
        kinds.append(seen(tmp_path / "run"))
        if next(calls) <= n:
            break
    assert (
        refused > 20
        and set(kinds) == {("old",) * 3, ("new", "old", "old"), ("new", "new", "old"), ("new",) * 3}
        and kinds[-1] == ("new",) * 3
    )


@pytest.mark.slow
def test_the_sweep_would_notice_a_replacement_that_can_be_lost(tmp_path, monkeypatch):
    "The negative control: the old folder is removed before the new one has its name"

    def careless(aside, path):
        if path.exists():
            shutil.rmtree(path)
        os.rename(aside, path)

    monkeypatch.setattr(store, "_replace", careless)
    lost = 0
    for n in count():
        died = killed_at(fresh(tmp_path / "run"), n)
        try:
            seen(tmp_path / "run")
        except StorageError:
            lost += 1
        if not died:
            break
    assert lost > 0


def test_what_a_user_calls_almost_so_is_not_cleared_away(tmp_path):
    for name in (".notes.tmp", ".a.old", ".x.0123456789abcdef.bak", "a.0123456789abcdef.tmp"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a.0123456789abcdef.tmp").write_text("torn")
    (tmp_path / ".b.0123456789abcdef.tmp").mkdir()
    with lock(tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {
        ".notes.tmp",
        ".a.old",
        ".x.0123456789abcdef.bak",
        "a.0123456789abcdef.tmp",
        ".lock",
    }


# one writer


@contextmanager
def holder(folder, more=lambda: None):
    "Another process that holds a folder"
    r, w = os.pipe()

    def work():
        with lock(folder):
            more()
            os.write(w, b"1")
            time.sleep(60)

    pid = forked(work, wait=False)
    os.read(r, 1)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(r), os.close(w)


def test_the_other_one_is_told_who_holds_it(tmp_path):
    import platform

    with holder(tmp_path) as pid:
        started = time.monotonic()
        with (
            pytest.raises(
                StorageError,
                match=rf"another process, {pid} on {re.escape(platform.node())}, for \d+ s; wait for it, or stop it",
            ),
            lock(tmp_path),
        ):
            pass
        assert time.monotonic() - started < 1


def test_a_killed_holder_frees_it_and_a_stopped_one_does_not(tmp_path):
    with holder(tmp_path) as pid:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(StorageError, match=f"another process, {pid} "), lock(tmp_path):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert (tmp_path / ".writer").exists()  # what it said of itself stays, and means nothing
        with lock(tmp_path):
            pass
        assert not (tmp_path / ".writer").exists()


def test_a_worker_does_not_keep_what_its_parent_held(tmp_path):
    "A forked child that lives on when the holder is killed"
    r, w = os.pipe()
    with holder(tmp_path, lambda: os.write(w, str(forked(lambda: time.sleep(30), wait=False)).encode())) as pid:
        worker = int(os.read(r, 20))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            os.kill(worker, 0)  # it lives
            with lock(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_twice_in_one_kernel(tmp_path):
    with lock(tmp_path), pytest.raises(StorageError, match="this process already"), lock(tmp_path):
        pass
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), lock(tmp_path):
            raise KeyboardInterrupt  # a cell that was interrupted, and run again
    with lock(tmp_path):
        pass


@pytest.mark.slow
def test_one_of_two_runs(tmp_path):
    "Twenty times two at once: one works, the other is refused"

    def work():
        try:
            with lock(tmp_path):
                with open(tmp_path / "inside", "x"):
                    time.sleep(0.05)
                os.unlink(tmp_path / "inside")
        except StorageError:
            os._exit(5)

    for _ in range(20):
        pids = [forked(work, wait=False) for _ in range(2)]
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        assert codes in ([0, 5], [0, 0])  # both, where the second came after the first had ended
    assert not (tmp_path / "inside").exists()


def test_a_clock_that_jumps_back(tmp_path, monkeypatch):
    with holder(tmp_path):
        monkeypatch.setattr(time, "time", lambda: 0.0)
        with pytest.raises(StorageError, match=r"for 0 s"), lock(tmp_path):
            pass


# nothing else writes

WRITES = {
    "to_parquet",
    "to_csv",
    "to_json",
    "to_excel",
    "to_pickle",
    "savefig",
    "write_text",
    "write_bytes",
    "save_pretrained",
    "save_file",
    "save",
    "savez",
    "dump",
    "write_table",
    "save_to_disk",
    "replace",
    "rename",
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "move",
    "symlink_to",
    "extract",
    "extractall",
    "writestr",
    "urlretrieve",
}
ALLOWED = {  # module, function, call -> why
    ("train.checkpoints", "_write_state", "save_file"): "into a staged folder",
    ("results.formats", "as_csv", "frame.to_csv"): "into memory",
    ("results.formats", "_in_style", "figure.savefig"): "into memory",
    ("train.evaluate", "write", "np.save"): "into memory",
    ("train.checkpoints", "keep", "save_file"): "into a staged folder",
    ("deploy.huggingface", "export", "model.save_pretrained"): "into a staged folder",
    ("deploy.huggingface", "export", "tokenizer.save_pretrained"): "into a staged folder",
    ("train.run", "_record", "predictions.to_parquet"): "into memory",
    ("arguments", None, "frame.to_csv"): "into memory",
    ("arguments", None, "frame.to_json"): "into memory",
    ("arguments", None, "frame.to_parquet"): "into memory",
    ("cli", "_predict", "frame.to_csv"): "to the screen",
    ("cli", "_predict", "write_table"): "through the store, see arguments",
    ("ui.views", "picture", "figure.savefig"): "into memory",
    ("data.download", "_unpack", "open"): "into a scratch folder; `rename_into_place` gives the files their names",
    ("data.download", "_download", "open"): "into a scratch folder",
    ("data.download", "_from_url", "os.replace"): "within the scratch folder",
}


def writes(source):
    "(function, call) wherever code writes a file by itself"

    def inside(node, function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and function is None:
            function = node.name
        if isinstance(node, ast.Call):
            name, module = ast.unparse(node.func), isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value)
            last = name.rsplit(".", 1)[-1]
            modes = [
                a.value
                for a in [*node.args, *(k.value for k in node.keywords)]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
            several = {"replace", "rename", "copy", "move"}  # methods of text and of other things, too
            opens = last == "open" and any(re.fullmatch(r"[wax][bt+]*|r[bt]?\+[bt]?", m) for m in modes)
            moves = last in several and module in ("os", "shutil")
            writes = last in WRITES - several - {"save", "dump"} and (module or last != "write_bytes")
            saves = name in {"np.save", "torch.save", "json.dump", "pickle.dump", "yaml.dump", "nbformat.write"}
            if opens or moves or writes or saves:
                yield function, name
        for child in ast.iter_child_nodes(node):
            yield from inside(child, function)

    return set(inside(ast.parse(source), None))


def test_every_file_goes_through_the_store():
    found = {(module(path), *w) for path in MODULES if path.stem != "store" for w in writes(path.read_text("utf-8"))}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source,found",
    [
        ("open(p, 'w')", "open"),
        ("def f(): open(p, mode='ab')", "open"),
        ("p.open('x')", "p.open"),
        ("p.write_text('')", "p.write_text"),
        ("p.write_bytes(b'')", "p.write_bytes"),
        ("os.replace(a, b)", "os.replace"),
        ("shutil.copy(a, b)", "shutil.copy"),
        ("frame.to_csv(p)", "frame.to_csv"),
        ("json.dump(x, f)", "json.dump"),
        ("save_file(w, p)", "save_file"),
        ("open(p)", None),
        ("open(p, 'rb')", None),
        ("write_bytes(p, b'')", None),
        ("text.replace('a', 'b')", None),
        ("replace(job, seed=1)", None),
        ("copy.copy(x)", None),
    ],
)
def test_a_write_is_noticed(source, found):
    assert {name for _, name in writes(source)} == ({found} if found else set())
