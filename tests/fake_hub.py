"""A stand-in of the Hugging Face hub: four data sets in their published layout and a small random mBERT, served from a
folder.

`fill(folder)` writes them; `with serve(folder) as hub:` serves them at `hub.url` (for HF_ENDPOINT) and keeps the
paths asked for in `hub.asked`."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XNLI = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
PAWSX = "de en es fr ja ko zh".split()
MODELS = ("google-bert/bert-base-multilingual-cased", "bert-base-multilingual-cased")


def fill(folder, train=60, dev=24, test=24):
    """Write the data sets and the model; every language of XNLI and PAWS-X has a machine-translated train split, as on
    the hub"""
    sizes = {"train": train, "validation": dev, "test": test}
    for lang in XNLI:
        for split, n in sizes.items():
            rows(
                folder,
                f"facebook/xnli/{lang}/{split}",
                n,
                lang,
                ("premise", "hypothesis"),
                "label",
                ("entailment", "neutral", "contradiction"),
            )
    for lang in PAWSX:
        for split, n in sizes.items():
            rows(
                folder,
                f"google-research-datasets/paws-x/{lang}/{split}",
                n,
                lang,
                ("sentence1", "sentence2"),
                "label",
                ("0", "1"),
                ids=True,
            )
    for config, texts, label, names in (
        ("qam", ("question", "answer"), "label", ("False", "True")),
        ("qadsm", ("query", "ad_title", "ad_description"), "relevance_label", ("Bad", "Good")),
    ):
        rows(folder, f"hgissbkh/xglue/{config}/train", train, "en", texts, label, names)
        for lang in ("en", "de", "fr"):
            for split, n in (("validation", dev), ("test", test)):
                rows(folder, f"hgissbkh/xglue/{config}/{split}.{lang}", n, lang, texts, label, names)
    for name in MODELS:
        model(Path(folder) / "models" / name)
    return Path(folder)


def rows(folder, path, n, lang, texts, label, names, ids=False):  # noqa: PLR0913 — a file's columns
    from datasets import ClassLabel, Dataset, Features, Value

    columns = {t: [f"the {lang} {t} number {i} is {i % len(names)}" for i in range(n)] for t in texts} | {
        label: [i % len(names) for i in range(n)]
    }
    features = {t: Value("string") for t in texts} | {label: ClassLabel(names=list(names))}
    if ids:
        columns, features = {"id": list(range(1, n + 1)), **columns}, {"id": Value("int32"), **features}
    file = Path(folder) / "datasets" / f"{path}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(file)


def model(folder):
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "is",
        "number",
        "yes",
        "no",
        "maybe",
        *letters,
        *("##" + x for x in letters),
    ]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}, do_lower_case=False, model_max_length=512).save_pretrained(
        folder
    )


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if api := re.fullmatch(r"/api/(datasets|models)/(.+?)(?:/(revision|tree)/([^/]+)(/.+)?)?", path):
            return self.api(api[1], api[2], api[3]) if not api[5] else self.send(b"", 404, "EntryNotFound")
        if file := re.fullmatch(r"/(?:(datasets)/)?(.+?)/resolve/([^/]+)/(.+)", path):
            found = self.server.folder / (file[1] or "models") / file[2] / file[4]
            return self.send(found.read_bytes()) if found.is_file() else self.send(b"", 404, "EntryNotFound")
        self.send(b"", 404, "RepoNotFound")

    def api(self, kind, repo, what):
        folder = self.server.folder / kind / repo
        if not folder.is_dir():
            return self.send(b"", 404, "RepoNotFound")
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        if what == "tree":
            return self.send(
                json.dumps(
                    [
                        dict(
                            type="file",
                            path=f.relative_to(folder).as_posix(),
                            size=f.stat().st_size,
                            oid=hashlib.sha1(f.read_bytes()).hexdigest(),
                        )
                        for f in files
                    ]
                ).encode()
            )
        self.send(
            json.dumps(
                dict(id=repo, sha=COMMIT, siblings=[dict(rfilename=f.relative_to(folder).as_posix()) for f in files])
            ).encode()
        )

    def send(self, data, status=200, error=None):
        self.send_response(status)
        for name, value in {
            "Content-Length": len(data),
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "X-Error-Code": error,
        }.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serve(folder):
    "Serve the folder on this machine while the block runs"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.asked = Path(folder), []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=server.asked)
    finally:
        server.shutdown()
