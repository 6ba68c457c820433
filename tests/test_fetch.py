"""Data checks and downloads: downloads from a server on this machine, hostile archives, the report, the command
line."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fake_hub
import pytest
from conftest import ROOT

from macular.cli import main
from macular.data import check as check_module
from macular.data import download as module
from macular.data.check import check_data
from macular.data.download import Download, _unpack, downloads, fetch
from macular.data.sources import Folder, hub_layouts
from macular.data.tasks import load, tasks
from macular.exceptions import DataError, ParameterError, SetupError, StorageError

DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real files in ../shared/data are not here")
PAIRS = "id\tsentence1\tsentence2\tlabel\n1\ta cat\ta dog\t0\n2\ta cat\tone cat\t1\n"
KEEP = downloads["pawsx"][0].keep
WORDS = "".join(f"word{i} wort{i}\n" for i in range(12_000))


class Site(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"only this")
        else:
            super().do_GET()


@contextmanager
def served(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(folder)))
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()


def packed(files, kind="zip"):
    "An archive as bytes; a value that is no text is a tar member with that type"
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(name)
                if isinstance(text, str):
                    member.size = len(text.encode())
                else:
                    member.type, member.linkname = text, "/etc/passwd"
                archive.addfile(member, io.BytesIO(text.encode()) if isinstance(text, str) else None)
    return data.getvalue()


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def offer(monkeypatch):
    "Make a download known for one test"
    return lambda name, *parts: monkeypatch.setitem(downloads, name, parts)


def everything(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# the records


def test_every_task_can_be_fetched_and_no_translation_is_kept():
    assert set(downloads) == {*hub_layouts, "dictionaries"}
    for parts in downloads.values():
        assert all(
            part.licence and part.urls and part.keep and all(url.startswith(("https://", "hub:")) for url in part.urls)
            for part in parts
        )
    names = [
        f"x-final/{lang}/{file}.tsv"
        for lang in ("en", "de")
        for file in ("train", "translated_train", "dev_2k", "test_2k")
    ]
    assert [n for n in names if module._tail(n, KEEP)] == [
        "x-final/en/train.tsv",
        "x-final/en/dev_2k.tsv",
        "x-final/en/test_2k.tsv",
        "x-final/de/dev_2k.tsv",
        "x-final/de/test_2k.tsv",
    ]
    assert not any(
        module._tail(f"XNLI-MT-1.0/multinli/multinli.train.{lang}.tsv", part.keep)
        for lang in tasks["xnli"].langs[1:]
        for part in downloads["xnli"]
    )


def test_what_is_fetched_is_where_it_is_read():
    for name, task in ((name, tasks[name]) for name in hub_layouts):
        kept = [pattern for part in downloads[name] for pattern in part.keep]
        for split in ("train", "dev", "test"):
            lang = task.source_lang if split == "train" else task.langs[-1]
            assert module._tail(Folder(".").name(task, split, lang), kept)


# fetching


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_data_set(site, tmp_path, offer, kind):
    (site / "x").write_bytes(
        packed(
            {
                "x-final/en/train.tsv": PAIRS,
                "x-final/de/translated_train.tsv": PAIRS,
                "x-final/de/dev_2k.tsv": PAIRS,
                "README": "no",
            },
            kind,
        )
    )
    with served(site) as (url, asked):
        offer("pawsx", Download((f"{url}/x",), KEEP, "free"))
        got = fetch("pawsx", tmp_path / "data", yes=True)
        assert got[0]["rows"] == 4 and len(load("pawsx", "train", source=Folder(str(tmp_path / "data")))) == 2
        assert fetch("pawsx", tmp_path / "data", yes=True)[0]["source"] == "already here" and asked == ["/x"]
    assert everything(tmp_path / "data") == {"x-final/en/train.tsv", "x-final/de/dev_2k.tsv", "fetched.json"}
    record = json.loads((tmp_path / "data/fetched.json").read_text())
    assert record["files"]["x-final/en/train.tsv"]["licence"] == "free" and len(record["downloads"][f"{url}/x"]) == 64


def test_nothing_is_asked_for_before_the_licence_is_accepted(tmp_path, capsys):
    with pytest.raises(ParameterError, match="--yes"):
        fetch("xnli", tmp_path / "data")
    assert "CC BY-NC 4.0 (XNLI) [NON-COMMERCIAL]" in capsys.readouterr().out and not (tmp_path / "data").exists()
    with pytest.raises(ParameterError, match="Did you mean 'xnli'"):
        fetch("xnlii", tmp_path, yes=True)


def test_all_names_are_known_and_all_licences_shown_before_anything_is_asked_for(
    site, tmp_path, offer, capsys, monkeypatch
):
    for name in ("one", "two"):
        (site / f"en-{name}.txt").write_text(WORDS + f"{name} wort\n")
    monkeypatch.chdir(tmp_path)
    with served(site) as (url, asked):
        for name in ("one", "two"):
            offer(name, Download((f"{url}/en-{name}.txt",), (f"en-{name}.txt",), f"licence {name}"))
        assert main(["data", "fetch", "one", "twoo", "--yes"]) == 2
        assert "unknown download 'twoo'" in (told := capsys.readouterr()).err and told.out == ""
        assert main(["data", "fetch", "one", "two"]) == 2
        assert (
            capsys.readouterr().out == "one: licence one\ntwo: licence two\n"
            and asked == []
            and not list(tmp_path.glob("data*"))
        )
        assert main(["data", "fetch", "one", "two", "one", "--yes"]) == 0
        assert capsys.readouterr().out.startswith("one: licence one\ntwo: licence two\nen-one.txt: ") and asked == [
            "/en-one.txt",
            "/en-two.txt",
        ]
        offer("dictionaries", Download((f"{url}/en-one.txt",), ("en-one.txt",), "CC0"))
        assert fetch("dictionaries", yes=True)[0]["files"] == ["en-one.txt"]
    assert everything(tmp_path / "data") == {
        "en-one.txt",
        "en-two.txt",
        "fetched.json",
        "dictionaries/en-one.txt",
        "dictionaries/fetched.json",
    }


def test_sources_are_tried_in_turn(site, tmp_path, offer):
    (site / "en-xx.txt").write_text(WORDS)
    (site / "page.html").write_text("<!DOCTYPE html>\n<p>moved</p>\n")
    with served(site) as (url, asked):
        offer(
            "words",
            Download(
                (f"{url}/gone", f"{url}/cut/en-xx.txt", f"{url}/page.html", "http://127.0.0.1:9/x", f"{url}/en-xx.txt"),
                ("en-xx.txt",),
                "CC0",
            ),
        )
        got = fetch("words", tmp_path / "data", yes=True)
    assert got == [dict(files=["en-xx.txt"], rows=12_000, source=f"{url}/en-xx.txt")] and len(asked) == 4
    assert everything(tmp_path / "data") == {"en-xx.txt", "fetched.json"}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "path, reason",
    [
        ("gone", "404"),
        ("cut/x", "the connection broke at 9 of 1,000,000 bytes"),
        ("page", "it is not an archive; it begins with b'<!DOCTYPE"),
        ("other", "holds none of"),
        ("half", "not a valid archive"),
        ("bad", "line 3: '7'"),
    ],
)
def test_when_no_source_helps(site, tmp_path, offer, path, reason):
    good = packed({"x-final/en/train.tsv": PAIRS * 200})
    (site / "page").write_text("<!DOCTYPE html>")
    (site / "other").write_bytes(packed({"y/en/train.tsv.bak": PAIRS}))
    (site / "half").write_bytes(packed({"x-final/en/train.tsv": PAIRS * 200}, "tar")[:-40])
    (site / "bad").write_bytes(packed({"x-final/en/train.tsv": PAIRS.replace("\t1\n", "\t7\n")}))
    (site / "good").write_bytes(good)
    with served(site) as (url, _):
        offer("pawsx", Download((f"{url}/{path}",), KEEP, "free", by_hand="Ask a librarian."))
        with pytest.raises(SetupError) as raised:
            fetch("pawsx", tmp_path / "data", yes=True)
    assert reason in str(raised.value) and "Ask a librarian." in str(raised.value) and len(str(raised.value)) <= 1000
    assert everything(tmp_path / "data") == set()


def test_a_published_sum_is_checked(site, tmp_path, offer):
    (site / "en-xx.txt").write_text(WORDS)
    with served(site) as (url, _):
        offer("words", Download((f"{url}/en-xx.txt",), ("en-xx.txt",), "CC0", sha256="0" * 64))
        with pytest.raises(SetupError, match="not 0000000000000000…"):
            fetch("words", tmp_path / "data", yes=True)


def test_a_file_that_changed_since_it_was_first_seen(site, tmp_path, offer):
    (site / "en-xx.txt").write_text(WORDS)
    with served(site) as (url, _):
        offer("words", Download((f"{url}/en-xx.txt",), ("en-xx.txt",), "CC0"))
        fetch("words", tmp_path / "data", yes=True)
        (tmp_path / "data/en-xx.txt").unlink()
        fetch("words", tmp_path / "data", yes=True)
        (tmp_path / "data/en-xx.txt").unlink()
        (site / "en-xx.txt").write_text(WORDS.replace("wort1\n", "gift\n"))
        with pytest.raises(SetupError, match="published anew"):
            fetch("words", tmp_path / "data", yes=True)
    assert everything(tmp_path / "data") == {"fetched.json"}


def test_a_file_of_the_users_is_not_overwritten(site, tmp_path, offer):
    (site / "en-xx.txt").write_text(WORDS)
    mine = tmp_path / "data/en-xx.txt"
    mine.parent.mkdir()
    mine.write_text("my own\n")
    with served(site) as (url, asked):
        offer("words", Download((f"{url}/en-xx.txt", f"{url}/en-xx.txt"), ("en-xx.txt",), "CC0"))
        with pytest.raises(DataError, match="exists with other contents. Move it away"):
            fetch("words", tmp_path / "data", yes=True)
    assert mine.read_text() == "my own\n" and len(asked) == 1 and everything(tmp_path / "data") == {"en-xx.txt"}


def test_a_dictionary_that_is_cut_short(site, tmp_path, offer):
    (site / "en-xx.txt").write_text("a few\nwords only\n")
    with served(site) as (url, _):
        offer("words", Download((f"{url}/en-xx.txt",), ("en-xx.txt",), "CC0"))
        with pytest.raises(SetupError, match="en-xx.txt has 2 lines"):
            fetch("words", tmp_path / "data", yes=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        fetch("xnli", tmp_path / "file" / "data", yes=True)


# hostile archives


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        "../x-final/en/train.tsv",
        "x-final/../../x-final/en/train.tsv",
        "x-final/../dev_2k.tsv",
        "a\\..\\x-final/en/train.tsv",
        "x-final\\en\\train.tsv",
    ],
)
def test_a_member_that_climbs_is_left(tmp_path, kind, name):
    (tmp_path / "a").write_bytes(packed({name: PAIRS, "x-final/de/test_2k.tsv": PAIRS}, kind))
    assert _unpack(tmp_path / "a", KEEP, tmp_path / "in" / "new") == ["x-final/de/test_2k.tsv"]
    assert everything(tmp_path) == {"a", "in/new/x-final/de/test_2k.tsv"}


def test_an_absolute_member_stays_below(tmp_path):
    (tmp_path / "a").write_bytes(packed({"/x-final/en/train.tsv": PAIRS}, "tar"))
    assert _unpack(tmp_path / "a", KEEP, tmp_path / "new") == ["x-final/en/train.tsv"] and everything(tmp_path) == {
        "a",
        "new/x-final/en/train.tsv",
    }


@pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_is_no_file(tmp_path, link):
    (tmp_path / "a").write_bytes(packed({"x-final/en/train.tsv": link}, "tar"))
    with pytest.raises(DataError, match="holds none of"):
        _unpack(tmp_path / "a", KEEP, tmp_path / "new")


def test_a_bomb_is_stopped(tmp_path):
    (tmp_path / "a").write_bytes(packed({"x-final/en/train.tsv": "0" * 50_000_000}))
    with pytest.raises(DataError, match="more than 100 times"):
        _unpack(tmp_path / "a", KEEP, tmp_path / "new")
    assert (tmp_path / "new/x-final/en/train.tsv").stat().st_size < 101 * (tmp_path / "a").stat().st_size


# from the hub


@pytest.mark.slow
def test_the_copy_on_the_hub(tmp_path):
    code = (
        "import json; from macular.data.download import fetch; from macular.data.sources import *; "
        "from macular.data.tasks import *\n"
        "fetch('qadsm', 'DIR', yes=True); f = Folder('DIR')\n"
        "print(json.dumps([f.langs(tasks['qadsm'], 'test'), load('qadsm', 'dev', 'fr', f).to_dict() == load('qadsm', "
        "'dev', 'fr', Hub()).to_dict()]))"
    )
    with fake_hub.serve(fake_hub.fill(tmp_path / "hub")) as served_hub:
        env = os.environ | {"HF_ENDPOINT": served_hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code.replace("DIR", str(tmp_path / "data"))],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert json.loads(done.stdout.splitlines()[-1]) == [["en", "de", "fr"], True], done.stderr[-2000:]
    files = json.loads((tmp_path / "data/fetched.json").read_text())["files"]
    assert len(files) == 7 and all(
        f["source"] == f"hub:hgissbkh/xglue@{fake_hub.COMMIT}" and f["noncommercial"] for f in files.values()
    )


# checking


def test_nothing_here(tmp_path):
    report = check_data(tmp_path / "data", tmp_path / "words")
    assert {row["rows"] for row in report.data} == {"missing"} and report.dictionaries == []
    assert [line for line in report.todo if "macular data fetch" in line] == [
        line for line in report.todo if "none in MUSE" not in line
    ] and len(report.todo) == 6


def test_a_broken_file_is_told_and_the_rest_is_read(tmp_path):
    for name, text in {"en/train": PAIRS, "en/dev_2k": PAIRS.replace("\t1\n", "\t-1\n"), "de/test_2k": PAIRS}.items():
        path = tmp_path / f"x-final/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "en-de.txt").write_text("cat katze\n\ndog\n")
    report = check_data(tmp_path, tmp_path)
    row = {row["split"]: row for row in report.data if row["task"] == "pawsx"}
    assert (
        row["train"]["rows"] == "sample: 2 of 49,401"
        and row["dev"]["rows"] == "unusable"
        and row["dev"]["odd"] == "see below"
    )
    assert (
        row["test"]["languages"] == "1 of 7: de"
        and len(report.problems) == 2
        and "2 of 3 lines cannot be used" in report.problems[1]
    )
    assert (
        report.problems[0].startswith("pawsx dev in 'en': dev_2k.tsv: 1 of 2 rows") and "hidden" in report.problems[0]
    )
    assert (
        "unusable" in str(report)
        and "| unusable |" in report._repr_markdown_()
        and "hidden" in str(report)
        and "problem" not in str(report)
    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("x-final/de/test_2k.tsv", "pawsx test in 'de': test_2k.tsv, line 2: byte"),
        ("XNLI-1.0/xnli.dev.tsv", "xnli dev: xnli.dev.tsv, line 2: byte"),
    ],
)
def test_a_damaged_file_ends_with_the_code_of_data(tmp_path, capsys, monkeypatch, name, said):
    "Though nothing is missing"
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(
        "language\tgold_label\tid\tsentence1\tsentence2\tpairID\tlabel\nde\tneutral\t1\tüber\tb\t1\t1\n".encode(
            "latin-1"
        )
    )
    assert main(["data", "check", "--data-dir", str(tmp_path), "--lexicon-dir", str(tmp_path)]) == 3
    assert said in (told := capsys.readouterr().out) and "Everything is here" not in told and "problem" not in told
    row = {"task": "pawsx", "split": "dev", "rows": "unusable"}
    data = check_module._Data([check_module._Split(row, "damaged", "de")], ["text"])
    monkeypatch.setattr(check_module, "_read_dictionaries", lambda *a: check_module._Dictionaries([], []))
    monkeypatch.setattr(check_module, "_read_data", lambda *a: data)
    report = check_data(tmp_path, tmp_path)
    assert report.problems == ["pawsx dev in 'de': damaged"] and report.todo == []


def test_a_licence_is_known_by_what_a_file_holds_and_not_by_its_name(site, tmp_path, offer):
    from macular.train.config import check as check_job
    from macular.train.config import fill
    from macular.train.inputs import Data

    for lang in ("de", "fr"):
        (site / f"en-{lang}.txt").write_text("".join(f"word{i} {lang}{i}\n" for i in range(12_000)))
    with served(site) as (url, _):
        offer(
            "words",
            *(
                Download((f"{url}/en-{lang}.txt",), (f"en-{lang}.txt",), "CC BY-NC 4.0 (MUSE)", True)
                for lang in ("de", "fr")
            ),
        )
        fetch("words", tmp_path, yes=True)
    (tmp_path / "en-de.txt").write_text("cat Katze\n")  # one's own
    assert {row["language"]: row["licence"] for row in check_data(tmp_path, tmp_path).dictionaries} == {
        "de": "not stated",
        "fr": "CC BY-NC 4.0 (MUSE) [NON-COMMERCIAL]",
    }
    data = Data(
        fill(check_job({"task": "pawsx", "method": "cosda_ml", "preset": "mini", "lexicon_dir": str(tmp_path)}))
    )
    assert data.lexicon.langs and {
        o["lang"]: (o["licence"], o["noncommercial"], o["source"][:4]) for o in data.origins
    } == {"de": ("not stated", False, "a fi"), "fr": ("CC BY-NC 4.0 (MUSE)", True, "http")}


def test_seen_in_training_is_counted(tmp_path):
    for name in ("train", "dev_2k"):
        path = tmp_path / f"x-final/en/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAIRS)
    found = check_data(tmp_path, tmp_path).data
    assert [row["odd"] for row in found if row["task"] == "pawsx"] == ["", "2 in training", ""]


@pytest.mark.slow
@real
def test_the_real_folder():
    report = check_data(DATA, DATA / "dictionaries")
    rows = {(row["task"], row["split"]): row for row in report.data}
    assert (
        rows["xnli", "train"]["rows"] == "sample: 29,436 of 392,702"
        and rows["xnli", "dev"]["rows"] == "2,490"
        and rows["xnli", "dev"]["languages"] == "15 of 15"
    )
    assert "185 untranslated" in rows["pawsx", "dev"]["odd"] and "[NON-COMMERCIAL]" in rows["xnli", "dev"]["licence"]
    words = {row["language"]: row for row in report.dictionaries}
    assert (
        len(words) == 20
        and words["vi"]["identity"] == 0.912
        and 0.1 < words["vi"]["switched at 0.5"] < 0.2 < words["de"]["switched at 0.5"] < 0.4
    )
    todo = "\n".join(report.todo)
    assert "macular data fetch qam" in todo and "no dictionary, and none in MUSE: kk, sr." in todo


# the command line


def test_the_command_line(tmp_path, capsys, site, offer):
    (site / "en-xx.txt").write_text(WORDS)
    assert main(["data", "check", "--data-dir", str(tmp_path), "--lexicon-dir", str(tmp_path)]) == 0
    assert "macular data fetch dictionaries" in capsys.readouterr().out
    with served(site) as (url, _):
        offer("words", Download((f"{url}/en-xx.txt",), ("en-xx.txt",), "CC BY-NC 4.0", True))
        assert main(["data", "fetch", "words", "--to", str(tmp_path / "data")]) == 2
        told = capsys.readouterr()
        assert (
            "[NON-COMMERCIAL]" in told.out
            and "ParameterError: Nothing was downloaded" in told.err
            and "Traceback" not in told.err
        )
        assert main(["data", "fetch", "words", "--to", str(tmp_path / "data"), "--yes"]) == 0
    assert (tmp_path / "data/en-xx.txt").read_text() == WORDS


def test_a_wrong_command(capsys):
    assert main(["data", "fetsch"]) == 2 and main(["data", "fetch", "xnlii", "--yes"]) == 2
    assert "Did you mean 'xnli'?" in capsys.readouterr().err
