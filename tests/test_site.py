"""The pages: built by the one command without a network, complete, whole in themselves, and found by the search."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html import unescape
from posixpath import dirname, normpath
from urllib.parse import unquote

import pytest
from conftest import ROOT
from test_layers import MODULES, module
from test_notebooks import NOTEBOOKS, cells, lines, named, notebook, of_all

pytestmark = pytest.mark.slow

pytest.importorskip("material", reason="mkdocs-material is not installed: the extra `docs`")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: the extra `docs`")
pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: the extra `docs`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browsed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)")
sys.path.insert(0, str(ROOT / "docs" / "build"))
# mkdocs's command behind the fence that conftest puts around every test
BUILD = "import conftest, sys; from mkdocs.__main__ import cli; sys.argv[0] = 'mkdocs'; cli()"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder that `mkdocs build --strict` writes"
    folder = tmp_path_factory.mktemp("site") / "_docs"
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {str(p.relative_to(site)): p.read_text("utf-8") for p in sorted(site.rglob("*.html"))}


def plain(html):
    return "".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


# whole in itself


def broken(pages, files):
    "(page, link) of what leads nowhere in the site: no such file, or no such place in it"
    ids = {name: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for name, text in pages.items()}
    for name, text in pages.items():
        for link in set(re.findall(r'<(?:a|img|link|script|source)\b[^>]*?\s(?:href|src)="([^"]*)"', text)):
            link = unescape(link)
            if re.match(r"(?:https?|mailto|data|javascript):", link) or not link:
                continue
            path, _, at = link.partition("#")
            there = normpath(f"{dirname(name)}/{unquote(path.partition('?')[0])}".lstrip("/")) if path else name
            if there not in files or at and there in ids and unquote(at) not in ids[there] | {"__top"}:
                yield name, link


def foreign(text):
    "List what a page would load from elsewhere"
    return re.findall(
        r'<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|href|data|srcset)="\s*((?:https?:)?//[^"]*)',
        text,
    ) + re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^)"']*)""", text)


def test_every_link_leads_somewhere(site, pages):
    files = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    own = {
        name: text for name, text in pages.items() if name != "404.html"
    }  # which is served from anywhere, with absolute links
    assert list(broken(own, files)) == []


def test_nothing_comes_from_elsewhere(site, pages):
    styles = {str(p.relative_to(site)): p.read_text("utf-8") for p in site.rglob("*.css")}
    assert (
        len(styles) >= 3 and {name: found for name, text in (pages | styles).items() if (found := foreign(text))} == {}
    )


def test_a_dead_link_and_a_foreign_font_would_be_noticed():
    one = {
        "a/b.html": '<a href="../c.html">c</a> <a href="#x">x</a> <img class="i" src="d.png"> <h2 id="y"></h2><a href="#y">y</a>'  # noqa: E501
    }
    assert set(broken(one, {"a/b.html"})) == {("a/b.html", link) for link in ("../c.html", "#x", "d.png")}
    assert foreign(
        '<link rel="stylesheet" href="https://fonts.example/css"> <script src="//x.example/y.js"></script><style>a{background:url(http://z.example)}</style>'
    ) == ["https://fonts.example/css", "//x.example/y.js", "http://z.example"]
    assert foreign('<a href="https://example.org">a link may leave</a>') == []


# complete


def missing(path, html):
    "Code but directives, outputs and words of Markdown outputs that a notebook's page lacks"
    seen = plain(html)
    for cell in cells(path):
        if cell.source.startswith("#| hide"):
            continue
        if "#| echo: false" not in cell.source and "".join("".join(lines(cell)).split()) not in seen:
            yield cell.source[:200]
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/markdown" in data:
                text = re.sub(r"\$[^$]*\$|\]\([^)]*\)|<[^>]*>|&\w+;|```\w*", "", data["text/markdown"])
                yield from (word for word in re.findall(r"\w{4,}", text) if plain(word) not in seen)
            elif "text/html" in data:
                if data["text/html"] not in html:
                    yield data["text/html"][:200]
            elif "image/png" not in data and "".join(data["text/plain"].split()) not in seen:
                yield data["text/plain"][:200]


def figures_without_text(path, html):
    "List the figures of a notebook's page that are missing or have no text"
    shown = sum(
        "image/png" in o.get("data", {}) and not {"text/html", "text/markdown"} & o["data"].keys()
        for c in cells(path)
        for o in c.outputs
    )
    shown += sum(
        len(re.findall(r"!\[[^\]]*\]\([^)]*\.png\)", c.source))
        for c in notebook(path).cells
        if c.cell_type == "markdown"
    )
    images = re.findall(r'<img\b[^>]*src="[^"]*\.png"[^>]*>', html)
    if len(images) != shown:
        yield f"{len(images)} of {shown} figures"
    yield from (image for image in images if not re.search(r'alt="[^"]{8,}"', image))


def raw_formulas(path, html):
    return re.findall(r"\\mathcal", re.sub(r'alttext="[^"]*"|<(code|pre|script)\b.*?</\1>', "", html, flags=re.S))


@pytest.mark.parametrize("wrong", [missing, figures_without_text, raw_formulas])
def test_a_page_has_what_its_notebook_has(wrong, pages):
    "Every line of code but directives, everything shown, every figure with a text, every formula drawn"
    html = {p: pages["index.html" if named(p) == "index" else f"nbs/{named(p)}.html"] for p in NOTEBOOKS}
    assert of_all(lambda path: list(wrong(path, html[path]))) == {}


def test_figure_1_is_there(site, pages):
    assert (
        'src="figure1.svg"' in pages["nbs/start.html"]
        and (site / "nbs" / "figure1.svg").read_bytes() == (ROOT / "nbs" / "figure1.svg").read_bytes()
    )


def test_every_notebook_and_module_is_in_the_navigation(pages):
    linked = set(re.findall(r'href="([^"#]+)"', pages["index.html"].partition("<main")[2].partition("<article")[0]))
    assert {f"nbs/{named(p)}.html" for p in NOTEBOOKS if p.stem != "index"} <= linked
    assert {f"api/{module(p)}.html" for p in MODULES} <= linked
    assert {f"explanations/{p.stem}.html" for p in (ROOT / "docs" / "explanations").glob("*.md")} <= linked


@pytest.mark.parametrize(
    "name, where",
    [
        ("start", "Tutorials"),
        ("train", "Tutorials"),
        ("howto/own_task", "How-tos"),
        ("benchmarks/bench", "Jobs"),
        ("anything_new", "Jobs"),
        ("model/02_losses", "model"),
        ("01_core", "core"),
        ("paper/01_table2", "paper"),
    ],
)
def test_a_new_notebook_finds_its_place(name, where):
    from notebooks import kind

    assert kind(name) == where


def test_the_reference_says_what_comments_say(pages):
    "A function's trailing comments, a command's options, a job's parameters"
    losses = pages["api/model.losses.html"]
    assert (
        'id="macular.model.losses.adversarial_loss"' in losses
        and "scalar, never below log k" in losses
        and "model/02_losses.html#cell.model.losses.adversarial_loss" in losses
    )
    assert "_full" not in re.sub(r"<code>.*?</code>", "", losses)
    assert all(
        f"macular {command}" in plain_text(pages["reference/command_line.html"])
        for command in ("tasks", "train", "sweep plan", "data fetch", "rerun", "export", "table", "compare")
    )
    parameters = plain_text(pages["reference/parameters.html"])
    assert "discriminator_rate" in parameters and "Eq. 8: weight of the shared encoder" in parameters


def plain_text(html):
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


# the paper, by its numbers

PARTS = (
    [f"eq-{n}" for n in range(1, 16)]
    + ["alg-1", "alg-2"]
    + [f"table-{n}" for n in range(1, 7)]
    + [f"fig-{n}" for n in range(1, 5)]
)


def lacking(part, pages):
    "List what the page of an equation, algorithm, table or figure lacks"
    kind, _, n = part.partition("-")
    body = pages[f"equations/{part}.html"].partition("<article")[2].partition("</article>")[0]
    wanted = [r'href="\.\./nbs/[\w/]+\.html']
    if kind == "eq":
        wanted += [rf'<span class="number">\({n}\)</span>', "<math", r'href="\.\./api/', "explained in"]
        wanted += [r'href="\.\./nbs/[\w/]+\.html#cell\.']
    return [pattern for pattern in wanted if not re.search(pattern, body)]


def test_every_part_of_the_paper_is_in_the_index(pages):
    assert [part for part in PARTS if f'href="{part}.html"' not in pages["equations/index.html"]] == []
    assert {part: found for part in PARTS if (found := lacking(part, pages))} == {}


def test_the_index_is_what_the_code_says(pages):
    "A term's number in the index is the number it is bound to"
    from macular.model.losses import terms

    for term in terms.values():
        if term.eq:
            assert f"(term <code>{term.name}</code>)" in pages[f"equations/eq-{term.eq}.html"]
    assert len(PARTS) == len([name for name in pages if re.match(r"equations/\w+-\d+\.html", name)])


@pytest.mark.parametrize(
    "text, found",
    [
        ("Eqs. 3, 4 and 10: x", {("Eq", 3), ("Eq", 4), ("Eq", 10)}),
        ("Eqs. 3–6 and 10–14.", {("Eq", n) for n in (3, 4, 5, 6, 10, 11, 12, 13, 14)}),
        ("Lines 5–8 of Alg. 1, 3–7 of Alg. 2", {("Alg", 1), ("Alg", 2)}),
        ("Figures 3 and 4: what", {("Fig", 3), ("Fig", 4)}),
        ("table2", {("Table", 2)}),
        ("an equal table of 3", set()),
    ],
)
def test_numbers_are_read(text, found):
    from equations import refs

    assert refs(text) == found


# the search


def test_the_search_knows_eq_13(site):
    entries = {d["location"]: d for d in json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]}
    found = entries["equations/eq-13.html"]
    assert found["title"].startswith("Eq. 13: ") and "lang_adv" in found["text"] and found["boost"] > 1


@pytest.fixture(scope="module")
def browser():
    with pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(site):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(browser, url, start, **options):
    "A page; whatever goes wrong in it or leaves the site is noted"
    page = browser.new_page(**options)
    page.wrong = []
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    page.on("console", lambda m: m.type in ("error", "warning") and page.wrong.append(m.text))
    page.on("request", lambda r: r.url.startswith((start, "data:", "blob:", "about:")) or page.wrong.append(r.url))
    page.goto(start + url)
    return page


@browsed
@pytest.mark.parametrize("how", ["served", "file"])
def test_the_search_finds(how, site, request, browser):
    "The search finds the right page first, over a server and from the folder alone"
    start = request.getfixturevalue("served") if how == "served" else site.as_uri() + "/"
    page = opened(browser, "index.html", start)
    for typed, first in {
        "Eq. 13": "equations/eq-13.html",
        "consistency": "explanations/5_consistency.html",
        "own data": "howto/own_task.html",
        "GPU cluster": "howto/cluster.html",
        "sentiment": "howto/own_task.html",
        "Alg. 2": "equations/alg-2.html",
    }.items():
        page.locator("[name=query]").click()
        page.locator("[name=query]").fill("")
        page.locator("[name=query]").press_sequentially(typed)
        page.wait_for_function(
            "([n, first]) => document.querySelector('a.md-search-result__link')?.href.includes(first)",
            arg=[typed, first],
            timeout=60_000,
        )
    page.locator("a.md-search-result__link").first.click()
    page.wait_for_selector("h1:has-text('Alg. 2')")
    assert page.wrong == []
    page.close()


@browsed
@pytest.mark.parametrize("scheme, width", [("light", 1300), ("dark", 1300), ("dark", 400)])
def test_it_can_be_read(scheme, width, site, browser):
    "Formulas are drawn, outputs have contrast, and no page is wider than a telephone"
    from test_browser import CONTRAST

    for url in (
        "nbs/start.html",
        "nbs/text/01_code_switch.html",
        "nbs/model/02_losses.html",
        "nbs/ui/04_error_browser.html",
        "equations/index.html",
        "api/model.losses.html",
    ):
        page = opened(browser, url, site.as_uri() + "/", viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.wait_for_load_state()
        heights = page.evaluate(
            "() => [...document.querySelectorAll('.equation math')].map(m => m.getBoundingClientRect().height)"
        )
        assert all(h > 12 for h in heights) and (len(heights) >= 7 or "objective" not in url or "api" in url)
        worst = page.evaluate(
            CONTRAST.replace(
                ".jupyter-widgets .widget-html-content *",
                ".output.html *, .md-content p, .md-content li, .md-content td",
            )
        )
        assert worst and worst[0][0] >= 4.5, (url, worst)
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, url
        assert page.wrong == []
        page.close()
