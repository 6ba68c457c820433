"""The store where it cannot write: a clear error, and what stood there unchanged."""
import pytest

from macular import store
from macular.core import StorageError
from macular.store import append, lock, staged, verify, write_json


def held(folder):
    with lock(folder): pass


def filled(folder):
    with staged(folder) as aside: (aside / "a").write_text("1")


@pytest.mark.parametrize("write", [lambda p: write_json(p, 1), lambda p: append(p, {}), held, filled], ids=["write_json", "append", "lock", "staged"])
def test_below_a_file(tmp_path, write):
    file = tmp_path / "README.md"
    file.write_text("mine")
    with pytest.raises(StorageError, match="cannot write"): write(file / "runs")
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.json" / "b").mkdir(parents=True)
    with pytest.raises(StorageError, match="unchanged"): write_json(tmp_path / "a.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json" / "b").is_dir()


def test_every_file_is_read_once_to_seal_a_folder(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(store, "sha256", lambda path, sum=store.sha256: read.append(path.name) or sum(path))
    with staged(tmp_path / "new") as aside:
        for name in "abc": (aside / name).write_text(name)
    assert sorted(read) == ["a", "b", "c"]
    verify(tmp_path / "new")
