"""The path from the Hugging Face hub, against a stand-in on this machine: only the wanted files, labels by name,
honest when offline."""

import json
import os
import subprocess
import sys
import time

import fake_hub
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

READ = """
import json, sys
from macular.data.sources import Hub
from macular.data.tasks import load, tasks
found = {}
for name, lang in (("xnli", "ur"), ("pawsx", "ko"), ("qam", "fr"), ("qadsm", "de")):
    for split in ("train", "dev", "test"):
        rows = load(name, split, None if split == "train" else lang)
        found[f"{name} {split}"] = [len(rows), rows[1]["text_a"], rows[1]["text_b"], [rows.features["label"].int2str(x) for x in rows["label"][:3]], rows["id"][:2]]
found["provenance"] = Hub().provenance(tasks["xnli"], "dev", "ur")
json.dump(found, sys.stdout)
"""  # noqa: E501


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake_hub.fill(tmp_path_factory.mktemp("hub"))


def python(code, home, url, offline="0"):
    "Run code in a fresh process whose hub is at a url"
    env = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_all_four_tasks(published, tmp_path):
    with fake_hub.serve(published) as served:
        done = python(READ, tmp_path, served.url)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["xnli train"] == [
        60,
        "the en premise number 1 is 1",
        "the en hypothesis number 1 is 1",
        ["entailment", "neutral", "contradiction"],
        ["0", "1"],
    ]
    assert found["xnli test"][1] == "the ur premise number 1 is 1" and found["pawsx dev"][3:] == [
        ["different", "paraphrase", "different"],
        ["1", "2"],
    ]
    assert found["qam dev"][1:4] == [
        "the fr question number 1 is 1",
        "the fr answer number 1 is 1",
        ["no", "yes", "no"],
    ]
    assert found["qadsm test"][2:4] == [
        "the de ad_title number 1 is 1 the de ad_description number 1 is 1",
        ["Bad", "Good", "Bad"],
    ]
    assert (
        found["provenance"][0]["source"] == f"facebook/xnli@{fake_hub.COMMIT}"
        and found["provenance"][0]["file"] == "ur/validation-00000-of-00001.parquet"
    )
    files = {path.split(f"/{fake_hub.COMMIT}/")[1] for path in served.asked if "/resolve/" in path}
    assert len(files) == 11 and [f for f in files if "train" in f and not f.startswith(("en/", "qam/", "qadsm/"))] == []

    again = python(READ, tmp_path, "http://127.0.0.1:9", offline="1")  # from the cache alone
    assert json.loads(again.stdout) == found


def test_a_training_split_that_is_machine_translated_is_never_asked_for(published, tmp_path):
    code = (
        "from dataclasses import replace\nfrom macular.data.tasks import load, tasks\n"
        "load(replace(tasks['xnli'], source_lang='de'), 'train')"
    )
    with fake_hub.serve(published) as served:
        done = python(code, tmp_path, served.url)
    assert "in 'en' only, not in 'de'" in done.stderr and served.asked == []


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network(tmp_path, offline):
    before = time.monotonic()
    done = python("from macular.data.tasks import load\nload('qam', 'train')", tmp_path, "http://127.0.0.1:9", offline)
    message = done.stderr.rsplit("macular.exceptions.SetupError: ", 1)[1]
    assert "qam/train-*.parquet of the data set hgissbkh/xglue" in message and "macular data fetch qam" in message
    assert len(message) <= 1000 and time.monotonic() - before < 60


def test_a_revision_that_has_no_such_file(published, tmp_path):
    gone = tmp_path / "datasets" / "hgissbkh" / "xglue" / "nc"
    gone.mkdir(parents=True)
    (gone / "train-00000-of-00001.parquet").write_bytes(b"")
    with fake_hub.serve(tmp_path) as served:
        done = python("from macular.data.tasks import load\nload('qam', 'train')", tmp_path / "home", served.url)
    assert "hgissbkh/xglue has no file qam/train-*.parquet in this revision" in done.stderr


def test_a_pinned_revision_is_asked_for(published, tmp_path):
    with fake_hub.serve(published) as served:
        done = python(
            "from macular.data.sources import Hub\nfrom macular.data.tasks import load\n"
            "load('xnli', 'dev', 'sw', Hub({'facebook/xnli': 'v1'}))",
            tmp_path,
            served.url,
        )
    assert done.returncode == 0 and "/api/datasets/facebook/xnli/revision/v1" in served.asked


def test_the_model(published, tmp_path):
    code = (
        "from transformers import AutoModel, AutoTokenizer\nname = 'google-bert/bert-base-multilingual-cased'\n"
        "print(AutoModel.from_pretrained(name).config.hidden_size, AutoTokenizer.from_pretrained(name)('the "
        "yes')['input_ids'])"
    )
    with fake_hub.serve(published) as served:
        done = python(code, tmp_path, served.url)
    assert done.stdout == "32 [2, 5, 8, 3]\n", done.stderr[-2000:]
