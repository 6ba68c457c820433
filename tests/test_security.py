"""The promises of SECURITY.md: nobody's file, name or text becomes code, leaves its folder, or is believed without a
hash."""

import ast
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_layers import MODULES, module, offences, parse
from test_notebooks import NOTEBOOKS, cells, named, of_all
from xss_payloads import HIDDEN, PAYLOADS, reprs

from macular.arguments import from_notebook
from macular.core import escape_markdown, table
from macular.exceptions import DataError, MacularError, ParameterError, SetupError, StorageError
from macular.store import read_json, verify
from macular.train.config import check

# code that runs nothing of others


def python(cell):
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))


@pytest.mark.slow
def test_notebooks_are_as_harmless_as_modules():
    tools = {"import fastcore", "import nbdev"}  # of lessons
    assert of_all(lambda path: {o for c in cells(path) for o in offences(python(c))} - tools) == {}


def loads(source):
    "Calls that load a model or tokenizer without refusing its code, or a model's weights from anything but safetensors"
    for node in ast.walk(parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rsplit(".", 1)[-1]
        said = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name not in ("from_pretrained", "pipeline"):
            continue
        if said.get("trust_remote_code") != "False":
            yield ast.unparse(node)[:120]
        model = name == "pipeline" or not any(w in ast.unparse(node.func) for w in ("Tokenizer", "Config"))
        if model and "use_safetensors" not in said and "use_safetensors" not in said.get("model_kwargs", ""):
            yield ast.unparse(node)[:120]


def test_models_are_loaded_without_their_code():
    assert [(module(path), call) for path in MODULES for call in loads(path.read_text("utf-8"))] == []


def test_notebooks_load_what_ships_or_say_so():
    "Lessons load the mini world's encoders, or what they have just saved"
    found = {
        (named(p), call)
        for p in NOTEBOOKS
        for c in cells(p)
        if not c.source.startswith("#| export")
        for call in loads(python(c))
        if "backbone('mini-" not in call and "backbone(f'mini-" not in call
    }
    assert found == {
        ("deploy/02_huggingface", "MacularConfig.from_pretrained(folder)"),
        ("deploy/02_huggingface", "AutoModelForSequenceClassification.from_pretrained(folder)"),
        ("deploy/02_huggingface", "pipeline('text-classification', str(folders['macular_nots']), truncation=True)"),
        (
            "deploy/03_distill",
            "AutoModelForSequenceClassification.from_pretrained(export(student, Path(tempfile.mkdtemp()) / 'model'))",
        ),
        ("howto/own_task", "pipeline('text-classification', str(model))"),
        ("howto/own_task", "pipeline('text-classification', str(model), truncation=True)"),
    }


@pytest.mark.parametrize(
    "source,n",
    [
        ("A.from_pretrained(x)", 2),
        ("A.from_pretrained(x, trust_remote_code=False)", 1),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=flag)", 1),
        ("A.from_pretrained(x, trust_remote_code=False, use_safetensors=True)", 0),
        ("pipeline('t', model=m, trust_remote_code=False)", 1),
    ],
)
def test_a_careless_load_is_noticed(source, n):
    assert len(list(loads(source))) == n


# models of others

CANARY = "canary-was-here"


@pytest.fixture
def model(tmp_path, monkeypatch):
    "A backbone of somebody's; whatever of it runs leaves a file in the working folder"
    import toy

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copytree(toy.backbone("bert"), tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text(
        f"open({str(tmp_path / CANARY)!r}, 'w')\n"
        f"from transformers import BertConfig as EvilConfig, BertModel as EvilModel\n"
    )
    return tmp_path / "model"


def changed(folder, file="config.json", **more):
    said = read_json(folder / file) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(said | more))


CODE = {
    "auto_map": dict(auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}),
    "attention": dict(_attn_implementation_internal="somebody/kernel"),
    "deep": dict(text_config={"inner": [{"auto_map": {"AutoModel": "evil.EvilModel"}}]}),
    "another type": dict(model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"}),
}


@pytest.mark.parametrize("more", CODE.values(), ids=CODE)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(model, more, file):
    from macular.data.backbones import backbone_folder
    from macular.deploy.huggingface import predict

    backbone_folder(str(model))
    changed(model, file, **more)
    with pytest.raises(DataError, match=f"needs code of its own .* in {file}"):
        backbone_folder(str(model))
    import pandas as pd

    with pytest.raises(DataError, match="needs code of its own"):
        predict(pd.DataFrame({"text_a": ["a"], "text_b": ["b"]}), model)
    assert not (model.parent / CANARY).exists()


def test_a_job_refuses_it_before_anything_is_trained(model, tmp_path):
    from macular.data.mini_world import Mini
    from macular.train.run import run

    changed(model, **CODE["auto_map"])
    with pytest.raises(DataError, match="needs code of its own"):
        run(
            check(
                {
                    "task": "pawsx",
                    "method": "finetune",
                    "preset": "mini",
                    "backbone": str(model),
                    "out": str(tmp_path / "runs"),
                }
            ),
            lambda *a: None,
            Mini(train=8, dev=4, test=4),
        )
    assert not (tmp_path / CANARY).exists() and not list((tmp_path / "runs").rglob("*.safetensors"))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "optimizer.pkl", "rng_state.pth", "data.npy"])
def test_a_pickle_is_never_opened(model, name):
    "Beside good weights it is not looked at; in their place it is no model; in a checkpoint it is damage"
    from macular.data.backbones import hashes
    from macular.model.modules import load_encoder
    from macular.store import sealed_folder

    (model / name).write_bytes(pickle.dumps(Trap(model.parent / CANARY)))
    load_encoder(model, seed=0)
    assert name not in hashes(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="no file named model.safetensors"):
        load_encoder(model, seed=0)
    with sealed_folder(model.parent / "state-1") as aside:
        (aside / "a").write_text("1")
    shutil.copy(model / name, model.parent / "state-1")
    with pytest.raises(StorageError, match="not listed"):
        verify(model.parent / "state-1")
    assert not (model.parent / CANARY).exists()
    pickle.loads((model / name).read_bytes()).close()
    assert (model.parent / CANARY).exists(), "the control: the trap works"


# a parameter's name is code to papermill

INJECTIONS = [
    'task=1;open("pwned","w")#',
    'x=0\nopen("pwned","w")\ny',
    "__import__('os').system('touch pwned')#",
    "task=1\n!touch pwned\n#",
    "a=[open('pwned','w')]#",
    "open('pwned','w');x",
    "x:open('pwned','w')",
    "task;open('pwned','w')#",
    "%%bash\ntouch pwned\n#",
    "In",
    "globals",
    "task\u2028open('pwned','w')",
    "ｔask",
    "lambda",
    "task ",
]


def a_notebook(path):
    cells = [
        nbformat.v4.new_code_cell('task = "xnli"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("task"),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
        ),
        path,
    )


@pytest.mark.slow
def test_plain_papermill_runs_a_name(tmp_path):
    "The hole that SECURITY.md speaks of, so that this test fails when papermill closes it"
    a_notebook(tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", {INJECTIONS[0]: "v"}, cwd=tmp_path, progress_bar=False
    )
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("words", [["train"], ["sweep", "plan"], ["sweep", "run", "--reports"]], ids=" ".join)
@pytest.mark.quick_cases(1)
def test_ours_runs_none(words, tmp_path, monkeypatch, capsys):
    "Fifteen names, three commands: exit code 2, no kernel, no file"
    from macular.cli import main

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))
    monkeypatch.chdir(tmp_path)
    for name in INJECTIONS:
        assert main([*words, "preset=mini", f"{name}=v"]) == 2, name
        assert main([*words, "-p", name, "v"]) == 2, name
    assert "unknown parameter" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def refused(call, *arguments, error=MacularError):
    "The error that a call ends with; None where it passes"
    try:
        call(*arguments)
    except error as e:
        return e


def test_a_plan_in_a_file_runs_none(tmp_path, monkeypatch):
    from macular.jobs.plan import plan

    monkeypatch.chdir(tmp_path)
    passed = [name for name in INJECTIONS if not refused(plan, {"preset": "mini", "task": "xnli", name: "v"})]
    assert passed == [] and list(tmp_path.iterdir()) == []


def test_the_notebook_itself_knows_its_parameters():
    "The first cell refuses what plain papermill lets through: a misspelt rate does not train with the default"
    names = {"In": ["", "# Parameters\nlrr = 1e-5\n"], "lrr": 1e-5, "task": "xnli", "preset": "mini"}
    with pytest.raises(ParameterError, match="unknown parameter 'lrr'"):
        from_notebook(names)


# names are no paths

PATHS = [
    "../xnli",
    "/etc/passwd",
    "~",
    "~root/xnli",
    "xnli\0",
    "CON",
    "xnli.",
    "x" * 256,
    "ü" * 200,
    "xn\u04cfi",
    "ｘｎｌｉ",
    "xnli/../xnli",
    "..\\xnli",
    ".",
    "",
    "xnli\n",
    "$HOME",
    "{task}",
]


@pytest.mark.parametrize("parameter", ["task", "method", "preset", "langs", "stage1", "precision"])
def test_names_come_from_closed_sets(parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    passed, long = [], []
    for name in PATHS:
        if name == "" and parameter in ("method", "langs", "precision"):
            continue  # the default
        if parameter in ("langs", "stage1") and name.strip() == "xnli":
            continue  # blanks around names of a list are taken off
        error = refused(check, {"preset": "mini", parameter: name}, error=ParameterError)
        if error is None:
            passed.append(name)
        elif len(str(error)) >= 2000:
            long.append(name)
    assert (passed, long, list(tmp_path.iterdir())) == ([], [], [])


def test_downloads_and_task_records_too(tmp_path):
    from macular.data.download import fetch
    from macular.data.tasks import Task

    def download(name):
        fetch(name, tmp_path / "data", yes=True)

    def task(name):
        Task(name, ("a", "b"), ("en",))

    names = [name for name in PATHS if not re.fullmatch(r"CON|xnli\.", name)]
    assert [name for name in PATHS if not refused(download, name, error=ParameterError)] == []
    assert [name for name in names if not refused(task, name, error=ParameterError)] == []
    assert list(tmp_path.iterdir()) == []


# text of others stays text

ELEMENTS = {
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "p",
    "em",
    "strong",
    "code",
    "pre",
    "br",
    "b",
    "i",
    "small",
    "span",
    "div",
    "bdi",
    "sub",
    "progress",
    "svg",
    "polyline",
    "img",
}
ATTRIBUTES = {
    "style",
    "title",
    "value",
    "max",
    "width",
    "height",
    "role",
    "aria-label",
    "points",
    "fill",
    "stroke",
    "stroke-width",
    "viewbox",
    "class",
    "lang",
    "dir",
    "alt",
    "src",
}


def shown_by(node):
    "The names that a class defines, by `def` or by an assignment"
    names = {f.name for f in node.body if isinstance(f, ast.FunctionDef)}
    return names | {f.targets[0].id for f in node.body if isinstance(f, ast.Assign)}


def showing():
    "Every class of the package that shows itself in a notebook"
    for path in MODULES:
        for node in parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and shown_by(node) & {"_repr_markdown_", "_repr_html_"}:
                yield f"{module(path)}.{node.name}"


@pytest.fixture(scope="module")
def shown():
    return reprs()


def test_every_class_that_shows_itself_is_in_the_list(shown):
    assert set(shown) == set(showing())


def page(thing):
    "Return the HTML a browser is given: a notebook's Markdown is converted as nbconvert does it"
    from nbconvert.filters import markdown2html

    return thing._repr_html_() if hasattr(thing, "_repr_html_") else markdown2html(thing._repr_markdown_())


def test_what_is_shown_holds_no_element_of_others(shown):
    from test_workbench import Page

    foreign = {}
    for name in sorted(showing()):
        html = str(page(shown[name]))
        found = Page(html)
        wrong = [found.tags - ELEMENTS, found.names - ATTRIBUTES, found.links, {c for c in HIDDEN if c in html}]
        if any(wrong):
            foreign[name] = wrong
    assert foreign == {}


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if "<" in p and p[0] not in HIDDEN and "&lt;" not in p])
def test_negative_control_bare_markdown(payload):
    from nbconvert.filters import markdown2html
    from test_workbench import Page

    bare, safe = (Page(str(markdown2html(text))) for text in (f"a {payload}", f"a {escape_markdown(payload)}"))
    assert bare.tags - ELEMENTS or bare.names - ATTRIBUTES or bare.links
    assert safe.tags <= ELEMENTS and not safe.links


def test_escaping_cannot_be_undone_by_what_stands_before():
    from nbconvert.filters import markdown2html
    from test_workbench import Page

    for text in (
        r"\<script>",
        r"\\<script>",
        "<<script>",
        r"[a\](javascript:x)",
        r"!\[x](https://evil)",
        "![x](https://evil)",
        "[x](java&#115;cript:x)",
        "[x]( javascript:x)",
        "<javascript:x>",
        "[x](data:text/html,x)",
        "| <b>",
        "`<b>",
    ):
        found = Page(str(markdown2html(table([{"a": text}]))))
        assert (
            found.tags <= ELEMENTS | {"a"}
            and not any(":" in link and not link.startswith("http") for link in found.links)
            and "img" not in found.tags
        ), text
    assert table([{"a": "[01_core](01_core.ipynb)"}]).endswith("| [01_core](01_core.ipynb) |")


def test_figures_of_names_with_formulas(tmp_path):
    "`$\\frac{x}$` in a name is no mathematics: drawing it would fail"
    import matplotlib.pyplot as plt

    from macular.results.figures import plot_languages

    figure = plot_languages({"en": 50.0, "de": 40.0}, 33.0, title=PAYLOADS[-1])
    figure.savefig(tmp_path / "a.png")
    plt.close(figure)


def test_tables_for_latex_and_spreadsheets(shown):
    from macular.results.formats import as_csv

    latex, lines = shown["results.formats.Table"].latex(), as_csv(shown["results.formats.Table"])
    assert r"\frac" not in latex.replace(r"\textbackslash{}", "") and not re.search(
        r"(?<!\\)\$(?!\^|\\)", latex.replace(r"\$", "")
    )
    assert not re.search(r'(^|,)"?[=+@\t\r-]', lines, re.M)


# special tokens


def strange(tokens):
    return st.lists(
        st.sampled_from(
            [*tokens, *(t.lower() for t in tokens), "dog", " ", "", "[", "]", "<", ">", "\u200b", "a" * 30]
        ),
        max_size=12,
    ).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr", "bert", "xlmr", "deberta", "modernbert"])
def test_no_special_token_comes_out_of_a_text(name):
    "Neither through text nor through ids that are looked up, also when a translation is one"
    import numpy as np
    import toy
    from transformers import AutoTokenizer

    from macular.data.mini_world import backbone
    from macular.text.batches import tokenize
    from macular.text.chunk_table import Chunked
    from macular.text.chunks import chunking_obstacle, frame
    from macular.text.code_switch import CodeSwitch, Place

    tokenizer = (
        AutoTokenizer.from_pretrained(backbone(name), trust_remote_code=False)
        if name.startswith("mini")
        else toy.tokenizer(name)
    )
    unknown = {tokenizer.unk_token_id}
    special, template = set(tokenizer.all_special_ids) - unknown, sum(map(len, frame(tokenizer).ids))
    words = {"de": {"dog": tuple(tokenizer.all_special_tokens)}}

    def specials(tokens):
        return [sum(int(i) in special for i in tokens.ids[a:b]) for a, b in zip(tokens.starts, tokens.starts[1:])]

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(*2 * [strange(tokenizer.all_special_tokens)]), min_size=1, max_size=4))
    def property(pairs):
        fields = [list(f) for f in zip(*pairs)]
        assert specials(tokenize(tokenizer, fields, 200)) == [template] * len(pairs)
        if chunking_obstacle(tokenizer):
            return
        chunked = Chunked(tokenizer, fields, np.arange(len(pairs)), CodeSwitch(("de",), word=1.0), words)
        for found in (chunked.tokens(200), chunked.switched(Place(), 200)[0]):
            assert specials(found) == [template] * len(pairs)

    property()


def test_negative_control_splitting_special_tokens_is_not_enough():
    "Unigram, which is XLM-R's, has `</s>` among its pieces"
    from transformers import AutoTokenizer

    from macular.data.mini_world import backbone

    tokenizer = AutoTokenizer.from_pretrained(backbone("mini-xlmr"), trust_remote_code=False)
    assert tokenizer("x </s> y", split_special_tokens=True)["input_ids"].count(tokenizer.sep_token_id) == 2


def test_negative_control_a_tokenizer_as_it_comes():
    from transformers import AutoTokenizer

    from macular.data.mini_world import backbone

    tokenizer = AutoTokenizer.from_pretrained(backbone("mini-bert"), trust_remote_code=False)
    assert tokenizer("a [SEP] b")["input_ids"].count(tokenizer.sep_token_id) == 2


# what a run leaves


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished job with dictionaries, trees and near-synonyms, a failed one and a plan's log, with secrets in the
    environment"""
    from macular.jobs.engines import attempt
    from macular.train.run import run

    out, secrets = (
        tmp_path_factory.mktemp("runs"),
        {"HF_TOKEN": "hf_" + "c4n4ry" * 6, "AWS_SECRET_ACCESS_KEY": "c4n4ryAWS" * 4, "MY_PASSWORD": "c4n4ry-password"},
    )
    with pytest.MonkeyPatch.context() as m:
        for name, value in secrets.items():
            m.setenv(name, value)
        job = check(
            {
                "task": "pawsx",
                "method": "cosda_ml",
                "preset": "mini",
                "max_train": 32,
                "rounds": 1,
                "langs": "de",
                "out": str(out),
            }
        )
        assert attempt(job)["state"] == "done"
        assert attempt(check(vars(job) | {"seed": 1}), do=lambda job: [][1])["state"] == "failed"
        done = run(check(vars(job) | {"method": "rs_da"}), lambda *a: None)
    return out, done


def test_no_secret_is_written_down(run_folder):
    out, _ = run_folder
    files = [p for p in out.rglob("*") if p.is_file()]
    assert (
        len(files) > 15
        and any(p.name == "log.txt" for p in files)
        and any(b"IndexError" in p.read_bytes() for p in files)
    )
    for p in files:
        assert b"c4n4ry" not in p.read_bytes() and os.environ["PATH"].encode() not in p.read_bytes(), p


def test_every_file_a_result_rests_on_is_named(run_folder):
    "Rows, dictionaries, near-synonyms and backbone: what it hashes to, where it comes from, under which licence"
    out, done = run_folder
    results = [read_json(p) for p in out.glob("*/result.json")]
    assert len(results) == 2 and done.values in results
    for result in results:
        for origin in result["origins"]:
            assert (
                origin["file"]
                and re.fullmatch(r"[0-9a-f]{64}", origin["sha256"])
                and origin["source"]
                and origin["licence"]
                and isinstance(origin["noncommercial"], bool)
            ), origin
        backbone = result["backbone"]
        assert (
            backbone["source"]
            and backbone["licence"]
            and {"config.json", "model.safetensors", "tokenizer.json"} <= set(backbone["sha256"])
        )
    assert all(not Path(o["file"]).is_absolute() for r in results for o in r["origins"])


def test_files_of_trees_are_named_too(tmp_path):
    from macular.data.tasks import tasks
    from macular.train.config import fill
    from macular.train.inputs import Data, load_trees

    (tmp_path / "pawsx-dev-en.conllu").write_text(
        "1\tDogs\t_\t_\t_\t_\t2\tnsubj\t_\t_\n2\tbark\t_\t_\t_\t_\t0\troot\t_\t_\n\n"
    )
    data = Data(fill(check({"task": "pawsx", "method": "syn", "preset": "mini", "tree_dir": str(tmp_path)})))
    digest = load_trees(data, tasks["pawsx"], "dev", "en")
    [origin] = [o for o in data.origins if o["file"] == "pawsx-dev-en.conllu"]
    assert origin["sha256"] == digest and origin["source"] and origin["licence"] == "not stated"


# the repository

TEXTS = [
    p
    for folder in (
        ROOT,
        *(f for top in ("nbs", "macular") for f in (ROOT / top, *(ROOT / top).glob("*/"))),
        ROOT / "tests",
        ROOT / ".ci",
        ROOT / ".github" / "workflows",
    )
    for p in sorted(folder.glob("*"))
    if p.is_file() and p.suffix in (".py", ".ipynb", ".md", ".toml", ".ini", ".txt", ".yml", ".yaml", ".cff", "", ".in")
]
SECRETS = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9]{32,}|-----BEGIN [A-Z "
    r"]*PRIVATE KEY|\beyJ[\w-]{20,}\.[\w-]{20,}\."
)
LAX = {
    "empty token": r"token\s*=\s*(''|\"\"|\s|$)",
    "empty password": r"password\s*=\s*(''|\"\")",
    "every address": r"0\.0\.0\.0",
    "every origin": r"allow_origin(_pat)?\b",
    "no XSRF check": r"disable_check_xsrf",
    "as root": r"allow[-_]root",
    "trust": r"nbdev[-_]trust|jupyter[- ]trust|NotebookNotary",
    "hooks that trust": r"nbdev[-_]install[-_]hooks",
    "script cells": r"%%(javascript|html|js)\b",
    "by itself": r"\bautorun\b",
}
SAID = {"SECURITY.md", "test_security.py"}  # where these words are explained and looked for
ALLOWED = {("test_browser.py", "as root")}  # CI is root; on loopback, with a token


def test_there_are_files_to_look_at():
    assert len(TEXTS) > 150 and {"README.md", "run", "test.yml", "train.ipynb"} <= {p.name for p in TEXTS}


def test_nothing_relaxes_jupyter():
    "No set-up step, document or notebook takes a token away, opens a port to others, or trusts notebooks"
    found = {
        (p.name, what)
        for p in TEXTS
        if p.name not in SAID
        for what, pattern in LAX.items()
        if re.search(pattern, p.read_text("utf-8"), re.M)
        and not (
            what == "empty token"
            and p.suffix != ".md"
            and not re.search(
                r"(IdentityProvider|ServerApp|NotebookApp)\.token\s*=\s*(''|\"\"|\s|$)", p.read_text("utf-8"), re.M
            )
        )
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "jupyter lab --IdentityProvider.token=''",
        "ServerApp.ip = '0.0.0.0'",
        "jupyter trust nbs/*.ipynb",
        "nbdev_install_hooks",
        "--ServerApp.allow_origin='*'",
        "%%javascript",
    ],
)
def test_a_relaxation_is_noticed(text):
    assert any(re.search(p, text, re.M) for p in LAX.values())


def test_no_secret_and_no_address_is_committed():
    for p in TEXTS:
        text = p.read_text("utf-8")
        assert not SECRETS.search(text), p
        assert p.name in SAID or not re.findall(
            r"\b[\w.]+@(?!example\b)[\w-]+\.(?:com|org|net|io|edu|de|cn)\b", text
        ), p


def test_a_secret_is_noticed():
    assert (
        SECRETS.search("hf_" + "a" * 34)
        and SECRETS.search("AKIA" + "A" * 16)
        and not SECRETS.search("hf_hub_download(repo)")
    )


RUNS_IN_OUTPUT = re.compile(r"<(script|iframe|object|embed|link|meta|form|base)\b|\bon\w+\s*=|javascript:")
RUNS_IN_MARKDOWN = re.compile(
    r"<(script|iframe|object|embed|form)\b|\bon(load|error|click|mouse\w+)\s*=|javascript:"
)


def running(notebook):
    "List what a browser or Jupyter would act upon when a notebook is opened"
    yield from {"widgets", "signature", "authors"} & set(notebook["metadata"])
    for cell in notebook["cells"]:
        yield from set(cell["metadata"]) - {"tags", "jupyter"}
        if cell["metadata"].get("jupyter", {"source_hidden": True}) != {"source_hidden": True}:
            yield "jupyter"
        if "attachments" in cell:
            yield "attachments"
        for output in cell.get("outputs", []):
            html = "".join(output.get("data", {}).get("text/html", "")).lower()
            if found := RUNS_IN_OUTPUT.search(html):
                yield found[0]
        if cell["cell_type"] == "markdown" and (found := RUNS_IN_MARKDOWN.search("".join(cell["source"]).lower())):
            yield found[0]


def test_a_notebook_holds_nothing_that_runs_when_it_is_opened():
    assert of_all(lambda path: list(running(json.loads(path.read_text("utf-8"))))) == {}


def test_what_would_run_is_noticed():
    cell = {"cell_type": "markdown", "metadata": {"trusted": True}, "source": ["<img onerror=", "alert(1)>"]}
    output = {"data": {"text/html": ["<b onclick=x>"]}}
    code = {"cell_type": "code", "metadata": {}, "source": [], "outputs": [output], "attachments": {}}
    found = list(running({"metadata": {"widgets": {}}, "cells": [cell, code]}))
    assert found == ["widgets", "trusted", "onerror=", "attachments", "onclick="]


def test_the_policy_says_what_these_tests_show():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for word in (
        "papermill",
        "untrusted notebook",
        "trust_remote_code",
        "pickle",
        "manifest",
        "special token",
        "report",
    ):
        assert word in text, word
    assert [link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text) if not (ROOT / link).exists()] == []
