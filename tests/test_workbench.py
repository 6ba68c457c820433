"""The views of the workbench: what they show is true, other people's text stays text, and nothing piles up."""

import ast
import json
import os
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from itertools import combinations
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
from conftest import ROOT
from xss_payloads import HIDDEN, PAYLOADS, VIEWS, views

from macular.data.mini_world import backbone
from macular.data.tasks import tasks
from macular.exceptions import DataError, ParameterError
from macular.results.formats import Table
from macular.results.records import from_lines
from macular.results.statistics import select
from macular.store import lock
from macular.text.code_switch import COLOURS, CodeSwitch, Piece, Place, Switched
from macular.ui import views as notebook_views
from macular.ui.board import _filled, _means, _varying, board, heat_map, versus
from macular.ui.error_browser import _KINDS, _answers, _of_kind, _share, _taught, errors
from macular.ui.live import _ask, _status, _training_page, _trainings, live
from macular.ui.playground import _switch_texts, _token_ids, playground, show_batch
from macular.ui.views import View, data_of, grid, safe

CONTROL = select(
    from_lines(ROOT / "nbs" / "records" / "control.jsonl"), world="related", dictionary="own", backbone="mini-xlmr"
)


# other people's text

TAGS = {
    "div",
    "p",
    "b",
    "i",
    "small",
    "span",
    "br",
    "bdi",
    "sub",
    "code",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "a",
    "img",
    "progress",
}
ATTRIBUTES = {"style", "title", "role", "open", "download", "href", "src", "alt", "value", "max"}


class Page(HTMLParser):
    "Tags, attributes, texts and links of a page, as a browser would read them"

    def __init__(self, html):
        super().__init__()
        self.tags, self.names, self.links, self.texts = set(), set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return views(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def odd_pages(odd):
    "The static page of every view of payloads"
    return {name: str(view.html()) for name, view in odd.items()}


def test_all_views_are_there(odd):
    assert tuple(odd) == VIEWS


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", VIEWS)
def test_text_of_others_stays_text(odd_pages, name):
    "Twelve payloads: no element, attribute or link on the page that is not ours, and no character that hides or turns"
    html = odd_pages[name]
    page = Page(html)
    assert page.tags <= TAGS and page.names <= ATTRIBUTES
    assert all(link.startswith(("data:image/png;base64,", "data:text/")) for link in page.links)
    assert not any(c in html for c in HIDDEN)
    assert "window" in "".join(page.texts) or "alt" in page.names, "the payloads are not on the page"


def test_every_payload_is_shown_somewhere(odd_pages):
    shown = "".join("".join(Page(html).texts) for html in odd_pages.values())
    for p in PAYLOADS:
        for c in HIDDEN:
            p = p.replace(c, f"⟨U+{ord(c):04X}⟩")
        assert p in shown


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if "<" in p])
def test_negative_control_unescaped_text_is_noticed(payload):
    page = Page(f"<div>{payload}</div>")
    assert not (page.tags <= TAGS and page.names <= ATTRIBUTES and all(link.startswith("data:") for link in page.links))


def test_figures_hold_no_mathematics(odd_pages):
    "A dollar sign in a name is a dollar sign: with mathematics, drawing `$\\frac{x}$` would fail"
    assert "base64" in odd_pages["heat_map"] and "base64" in odd_pages["live"]


def widgets_of_html(source):
    "List the places that make an HTML widget, or take a text that is no constant for markup"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "HTML",
            "HTMLMath",
            "display_html",
        ):
            yield ast.unparse(node)
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "Markup"
            and not isinstance(node.args[0], (ast.Constant, ast.IfExp))
        ):
            yield ast.unparse(node)


def test_markup_is_made_of_constants():
    """Every `Markup` is written in the source, apart from the escaping forms of `Switched` and the frame of a
    view"""
    found = {
        (name, call)
        for name in ("views", "playground", "board", "error_browser", "live")
        for call in widgets_of_html((ROOT / "macular" / "ui" / f"{name}.py").read_text("utf-8"))
    }
    assert found == {
        ("views", "ipywidgets.HTML(str(self.html()))"),
        ("views", "Markup(visible(body))"),
        ("views", "Markup(f'<div style=\"overflow-x:auto\">{table}</div>')"),
        ("playground", "Markup(s._repr_html_())"),
        ("playground", "Markup(p.html())"),
    }


# colours

VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # Machado et al. 2009, severity 1


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ rgb
        / [0.9505, 1, 1.089]
    )
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, vision):
    seen = [lab(np.clip(np.array(VISION[vision]) @ linear(c), 0, 1)) for c in colours]
    return min(np.linalg.norm(a - b) for a, b in combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
def test_languages_are_told_apart(vision):
    assert nearest([*COLOURS.values(), "#d5dbe1"], vision) > 15


def test_negative_control_two_colours_some_people_confuse():
    assert nearest(["#9ecbff", "#d9b8ff"], "deutan") < 5 < 15 < nearest(["#9ecbff", "#d9b8ff"], "normal")


@pytest.mark.parametrize("colour", [*COLOURS.values(), "#d5dbe1"])
def test_switched_words_can_be_read(colour):
    "Black on their colour, with the contrast WCAG calls enhanced"
    light = [float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, "#111111")]
    assert (light[0] + 0.05) / (light[1] + 0.05) >= 7


def test_colour_is_never_the_only_sign():
    html = playground(langs=("de", "fr"), word=1.0).html()
    assert html.count("background:#a8d4ff") > 0 and "> de<" in html and "> fr<" in html


# controls and twins


@pytest.fixture
def cell(monkeypatch):
    "A cell somebody looks at; call it to run it again"
    now = SimpleNamespace(runs=0, id="a")
    monkeypatch.setattr(notebook_views, "_cell", lambda: (now.id, now.runs))
    monkeypatch.setattr(notebook_views, "_open", {})

    def run(make, id="a"):
        now.runs, now.id = now.runs + 1, id
        view = make()
        view._repr_mimebundle_()
        return view

    return run


def instances():
    from ipywidgets.widgets.widget import _instances

    return len(_instances)


MAKERS = {
    "playground": playground,
    "show_batch": lambda: show_batch("qam"),
    "board": lambda: board(CONTROL),
    "versus": lambda: versus(CONTROL),
    "heat_map": lambda: heat_map(CONTROL, task="qam"),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", MAKERS)
def test_a_cell_that_is_run_again_leaves_nothing_behind(cell, name):
    before = instances()
    cell(MAKERS[name])
    once = instances()
    for _ in range(4):
        view = cell(MAKERS[name])
    assert instances() == once > before
    view.close()
    assert instances() == before


def test_two_views_of_two_cells_live_side_by_side(cell):
    one, two = cell(playground, "a"), cell(playground, "b")
    assert "box" in one.__dict__ and "box" in two.__dict__
    three = cell(playground, "a")
    assert "box" not in one.__dict__ and "box" in two.__dict__
    for view in (two, three):
        view.close()


def test_one_movement_draws_once(cell):
    drawn = []

    def controls(view):
        import ipywidgets

        n = ipywidgets.IntSlider(0)
        return {"n": n}, [n]

    for _ in range(5):
        view = cell(lambda: View(lambda n: drawn.append(n) or safe(n), controls, n=0))
    drawn.clear()
    view.named["n"].value = 3
    assert drawn == [3] and view.values == {"n": 3}
    view.close()


@pytest.mark.slow
def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    for _ in range(5):
        heat_map(CONTROL, task="qam").html()
        versus(CONTROL, task="qam").html()
    assert plt.get_fignums() == before


@pytest.mark.slow
def test_nobody_looks_at_a_job(tmp_path):
    "papermill runs the twin: a page, and no widget, in the notebook or in its metadata"
    source = "from macular.ui.playground import playground\nplayground(langs=('de',))"
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source)],
            metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
        ),
        tmp_path / "in.ipynb",
    )
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False, cwd=ROOT)
    done = nbformat.read(tmp_path / "out.ipynb", 4)
    assert [sorted(o.data) for o in done.cells[-1].outputs] == [
        ["text/html", "text/plain"]
    ] and "widgets" not in done.metadata


@pytest.mark.slow
def test_the_playground_is_there_at_once():
    "From a cold start, three seconds of a processor that does nothing else, without torch or transformers"
    code = (
        "import resource, sys; from macular.ui.playground import playground; html = playground().html(); u = "
        "resource.getrusage(resource.RUSAGE_SELF);"
        "print(u.ru_utime + u.ru_stime, *sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)), len(html) > "
        "2000)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout.split()
    assert float(said[0]) < 3 and said[-1] == "True" and not {"torch", "transformers"} & set(said)


def test_values_nobody_has_are_refused():
    with pytest.raises(ParameterError, match="this view has no wrod"):
        playground(wrod=1)


def test_what_goes_wrong_is_told_in_the_view():
    assert (
        "no dictionary language" in playground().change(langs=("sw",)).html()
        or "unknown dictionary language" in playground().change(langs=("sw",)).html()
    )


# what they show


def test_the_playground_draws_as_training_does():
    "Item, field, task and seed: the very draws of the augmenter"
    view, data = playground("pawsx", item=5, seed=3, word=0.7), data_of("pawsx")
    row = data.rows(data.target, "dev")[5]
    switch = CodeSwitch(tuple(x for x in tasks["pawsx"].langs if x in data.lexicon), 0.7)
    wanted = [
        switch([row[c]], [row["id"]], data.lexicon, Place(3, "pawsx", field))[0]
        for field, c in enumerate(("text_a", "text_b"))
    ]
    assert wanted == _switch_texts((row["text_a"], row["text_b"]), data, switch, row["id"], 3)
    assert all(w._repr_html_() in view.html() for w in wanted)


def test_another_pair_brings_its_texts():
    view = playground("qam")
    assert view.box
    view.named["item"].value = 4
    row = data_of("qam").rows(tasks["qam"], "dev")[4]
    assert view.values["text_a"] == view.named["text_a"].value == row["text_a"] and view.values["item"] == 4
    view.named["task"].value = "xnli"
    first = data_of("xnli").rows(tasks["xnli"], "dev")[0]
    assert (view.values["task"], view.values["item"], view.values["text_b"]) == ("xnli", 0, first["text_b"])
    assert set(view.values["langs"]) == {x for x in tasks["xnli"].langs if x in data_of().lexicon}
    view.close()


def test_a_button_takes_a_language_away():
    view = playground(langs=("de", "fr"), word=1.0)
    assert view.box
    next(b for b in view.named["langs"] if b.description == "fr").value = False
    assert view.values["langs"] == ("de",) and "> fr<" not in view.html()
    view.close()


def test_no_languages_change_nothing():
    assert "No word was exchanged" in playground(langs=(), word=1.0).html()


@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr"])
def test_the_ids_are_those_of_training(name):
    "Also where a text holds special tokens, none of which comes out"
    from transformers import AutoTokenizer

    from macular.text.batches import tokenize

    folder, texts = backbone(name), ("<s> the dog </s> [SEP] 犬!", "<pad> never")
    whole = [Switched((Piece(t, t),), 1, 0, 0) for t in texts]
    wanted = tokenize(AutoTokenizer.from_pretrained(folder), [[texts[0]], [texts[1]]], 200).ids
    shown = Page(str(_token_ids(whole, folder)))
    assert shown.texts[1::2] == list(map(str, wanted))


def test_sorting_and_filtering_say_the_same_numbers():
    plain, sorted_, some = (
        board(CONTROL, task="pawsx", **kw).html() for kw in ({}, {"sort": "de"}, {"contains": "nots"})
    )
    assert plain.count("<tr>") == sorted_.count("<tr>") == 5 and some.count("<tr>") == 2
    assert sorted_.index("Macular") < sorted_.index("Fine-tuning") and plain.index("Fine-tuning") < plain.index(
        "Macular"
    )


def test_a_board_says_that_it_found_nothing_and_shows_no_empty_column():
    assert "Nothing found" in board(CONTROL, task="pawsx", contains="no such row").html()
    table = Table(("method", "", "note"), [["a", "", ""], ["b", "", "new"]])
    assert _filled(table).columns == ("method", "note") and _filled(table).rows == [["a", ""], ["b", "new"]]


def test_the_heat_is_the_mean_over_seeds():
    own = select(CONTROL, task="qam")
    table = _means(own)
    wanted = np.mean([r.accuracy["en_dev"]["de"] for r in own if r.method == "macular"])
    assert table.loc["Macular", "de"] == pytest.approx(wanted)
    assert _means(own, "finetune").loc["Macular", "de"] == pytest.approx(wanted - table.loc["Fine-tuning", "de"])


def test_runs_made_differently_are_rows_of_their_own():
    from dataclasses import replace

    mixed = [*CONTROL, *(replace(r, parameters={"alpha": 0.9}) for r in select(CONTROL, method="macular"))]
    assert _varying(mixed) == ("alpha",) and "alpha 0.9" in board(mixed, task="qam").html()


def test_numbers_of_the_mini_world_say_so():
    assert "mini world" in board(CONTROL, show="beside paper").html()


def test_an_export_is_the_table_that_is_shown():
    import base64
    import re

    html = board(CONTROL, task="qam", contains="CoSDA").html()
    found = {
        name: base64.b64decode(data).decode()
        for name, data in re.findall(r'download="table\.(\w+)" href="data:[^;]+;base64,([^"]+)"', html)
    }
    assert found.keys() == {"md", "tex", "csv"} and all(
        "CoSDA-ML" in text and "Fine-tuning" not in text.split("\n\n")[0] for text in found.values()
    )


@pytest.mark.parametrize(
    "source, other, lang, wanted",
    [
        ("a dog", "ein Hund", "de", [None, "Hund"]),
        ("a dog", "Hundehütte", "de", [None, None]),
        ("dog a", "这狗", "zh", ["狗", None]),
        ("Dog, dog.", "der Hund!", "de", ["Hund"]),
    ],
)
def test_words_a_dictionary_could_have_taught(source, other, lang, wanted):
    dictionary = {"de": {"dog": ("Köter", "Hund")}, "zh": {"dog": ("狗",)}}[lang]
    assert [t for _, _, t in _taught([source], [other], dictionary, lang)] == wanted
    assert _share(_taught([source], [other], dictionary, lang)) == pytest.approx(
        sum(t is not None for t in wanted) / len(wanted)
    )


def test_kinds_of_errors(odd, tmp_path):
    from xss_payloads import a_run

    found = _answers(a_run(tmp_path))
    both = found.pairs("de")
    assert found.langs == ["de"] and [len(_of_kind(both, k)) for k in _KINDS] == [12, 0, 12, 0, 0, 12]
    with pytest.raises(ParameterError, match="unknown kind"):
        _of_kind(both, "strange")
    with pytest.raises(ParameterError, match="unknown language of the run"):
        found.pairs("fr")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no finished run"):
        errors(tmp_path)
    with pytest.raises(DataError, match="no finished run"):
        board(tmp_path)


# live


@pytest.fixture
def training(tmp_path):
    "A training as it stands on disk while it is under way"
    import json

    folder = tmp_path / "trainings" / "abc"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"title": "Macular", "tasks": ["xnli"], "steps": 20}))
    lines = [
        {"step": i, "round": 1 + (i > 10), "phase": "net", "pass": 1, "batch": i, "loss": 1 / i, "task": 1 / i}
        for i in range(1, 15)
    ]
    lines.insert(10, {"step": 10, "round": 1, "dev": {"xnli": 61.0}, "lang_disc": {"accuracy": 0.7, "chance": 0.5}})
    lines.insert(12, {"step": 11, "round": 1.1, "asked": True, "dev": {"xnli": 88.0}})
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_training_that_nobody_works_on_is_stopped(training):
    s = _status(training)
    assert (s.state, s.step, s.steps, s.round, s.best, s.dev) == ("stopped", 14, 20, 2, 1, 61.0), (
        "a number asked for on the way is no round"
    )
    assert "nothing was asked" in _ask(training, "stop") and not (training / "control").exists()


def test_a_finished_training_says_who_won_the_game(training):
    "The sentence follows from the last round's numbers, and a training under way has none"
    assert "The discriminator tells" not in _training_page(training)
    (training / "training.json").write_text("{}")
    for accuracy, said in ((0.7, "70 % of the cases, where guessing gives 50 %."), (0.52, "no better than guessing.")):
        with open(training / "history.jsonl", "a") as f:
            line = {"step": 20, "round": 2, "dev": {"xnli": 62.0}, "lang_disc": {"accuracy": accuracy, "chance": 0.5}}
            f.write(json.dumps(line) + "\n")
        page = _training_page(training)
        assert "tells whether a text is code-switched" in page and said in page


def test_words_for_a_training_that_runs(training):
    with lock(training):
        assert _status(training).state == "running"
        for word, written in (
            ("evaluate", b"evaluate"),
            ("pause", b"pause"),
            ("evaluate", b"evaluate pause"),
            ("stop", b"stop"),
        ):
            _ask(training, word)
            assert (training / "control").read_bytes() == written
            (training / "control").write_bytes(b"pause" if word == "pause" else written)
        _ask(training, "resume")
        assert not (training / "control").exists()


@pytest.mark.slow
def test_a_view_follows_and_ends(training, cell):
    "New lines are drawn by a thread, which is gone when the cell is run again or the view is closed"

    def watchers():
        return sum(t.name == "macular-live" and t.is_alive() for t in threading.enumerate())

    def settled(n):
        for _ in range(100):
            if watchers() == n:
                return True
            time.sleep(0.05)

    for _ in range(3):
        view = cell(lambda: live(training.parents[1], seconds=0.05))
    assert settled(1) and "step 14" in view.output.value
    with open(training / "history.jsonl", "a") as f:
        f.write('{"step": 15, "round": 2, "phase": "net", "pass": 1, "batch": 5, "loss": 0.1, "task": 0.1}\n')
    for _ in range(100):
        if "step 15" in view.output.value:
            break
        time.sleep(0.05)
    assert "step 15" in view.output.value
    view.close()
    assert settled(0)


def test_before_anything_began(tmp_path):
    assert _trainings(tmp_path) == {} and "No training has begun" in live(tmp_path).html()


def test_tables_of_numbers_and_texts():
    page = Page(grid(("a", "<b>"), [("<i>", 1.5)]))
    assert page.texts == ["a", "<b>", "<i>", "1.5"]
