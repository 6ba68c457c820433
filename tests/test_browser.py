"""The workbench in a real JupyterLab in a real browser: it runs, it moves, it runs nobody else's code, it can be
read."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from conftest import copy_project
from xss_payloads import PAYLOADS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
]

OUTPUTS = """() => jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code').map(c => c.model.outputs.toJSON())"""  # noqa: E501
READY = """async () => { await jupyterapp.restored; const w = jupyterapp.shell.currentWidget; await w.sessionContext.ready; await w.sessionContext.session.kernel.info; }"""  # noqa: E501
RUN = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > .99) return c; } return [255, 255, 255]; };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll('.jupyter-widgets .widget-html-content *')].filter(own).map(e => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.tagName, e.textContent.slice(0, 30)]; }).sort((x, y) => x[0] - y[0]).slice(0, 3); }"""  # noqa: E501


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a copy of the project, with nobody's own settings"
    folder = tmp_path_factory.mktemp("lab")
    project, port, token = copy_project(folder / "macular"), free_port(), secrets.token_hex(16)
    tour = project / "nbs" / "start.ipynb"
    assert "ROWS, ROUNDS = 300, 2" in tour.read_text()  # `nbdev_test` runs the tour as it is
    tour.write_text(tour.read_text().replace("ROWS, ROUNDS = 300, 2", "ROWS, ROUNDS = 200, 1"))
    own = {
        f"{name}_DIR": str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG",
            "JUPYTER_DATA",
            "JUPYTER_RUNTIME",
            "JUPYTERLAB_WORKSPACES",
            "JUPYTERLAB_SETTINGS",
        )
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={project}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | own | {"PYTHONPATH": str(project)}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=project, env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urlopen(f"{url}/api/status?token={token}", timeout=5).close()
                except (URLError, OSError):
                    time.sleep(0.25)
                else:
                    break
            else:
                pytest.fail((folder / "log").read_text()[-3000:])
            shots = Path(
                os.environ.get("MACULAR_SHOTS", folder)
            )  # `MACULAR_SHOTS=nbs/figures pytest tests/test_browser.py -k readme` takes README's picture anew
            yield SimpleNamespace(url=url, token=token, nbs=project / "nbs", shots=shots)
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def opened(lab, browser, name):
    "A notebook in JupyterLab, its kernel ready; whatever goes wrong in the page or leaves the machine is noted"
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.wrong = []
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    page.on("dialog", lambda d: (page.wrong.append(f"dialog {d.message}"), d.dismiss()))
    page.on("request", lambda r: r.url.startswith((lab.url, "data:", "blob:")) or page.wrong.append(r.url))
    page.goto(f"{lab.url}/lab/tree/nbs/{name}?reset&token={lab.token}")
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook", timeout=90_000)
    page.evaluate(READY)
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    return page


def run_all(page, seconds):
    page.set_default_timeout(seconds * 1000)
    assert page.evaluate(RUN) is True
    errors = [o for cell in page.evaluate(OUTPUTS) for o in cell if o["output_type"] == "error"]
    assert errors == [], json.dumps(errors)[:3000]
    page.set_default_timeout(30_000)


def write(lab, name, *sources):
    "A notebook of cells in the lab's project"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(s) for s in sources],
        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
    )
    nbformat.write(book, lab.nbs / name)
    return name


def wait_until(page, question, what, seconds=60):
    "Ask a page until it says yes"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if question():
            return
        page.wait_for_timeout(200)
    pytest.fail(f"not within {seconds} s: {what}")


# the tour


@pytest.fixture(scope="module")
def tour(lab, browser):
    "The tour, all its cells run"
    page = opened(lab, browser, "start.ipynb")
    run_all(page, 900)
    yield page
    page.close()


def test_the_tour_runs_without_an_error(tour, lab):
    tour.evaluate("() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0 }")
    tour.screenshot(path=lab.shots / "tour.png")
    assert tour.wrong == []


def test_every_view_is_a_widget(tour, lab):
    "A view's output has controls here, and a static twin beside them"
    views = [
        o["data"]
        for cell in tour.evaluate(OUTPUTS)
        for o in cell
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    calls = sum(
        c.source.rstrip()
        .splitlines()[-1]
        .startswith(("playground(", "show_batch(", "errors(", "versus(", "live(", "heat_map(", "board(", "adversary("))
        for c in nbformat.read(lab.nbs / "start.ipynb", 4).cells
        if c.cell_type == "code"
    )
    assert len(views) == calls >= 8 and all("<div" in v["text/html"] for v in views)


def first_output(page):
    return page.locator(".jp-CodeCell").first.locator(".jp-OutputArea-output").first


def test_a_slider_moves_the_picture(tour, lab):
    "The first cell: the word rate from where it is to nothing at all"
    out = first_output(tour)
    out.scroll_into_view_if_needed()
    slider = out.locator(".widget-hslider", has_text="word rate")
    before, handle = out.locator(".widget-html-content").inner_html(), slider.locator(".noUi-handle")
    handle.focus()
    for _ in range(10):
        handle.press("ArrowLeft")
    wait_until(tour, lambda: "No word was exchanged" in out.inner_text(), "the picture follows the slider")
    assert (
        slider.locator(".widget-readout").inner_text() == "0.00"
        and out.locator(".widget-html-content").inner_html() != before
    )
    for _ in range(20):
        handle.press("ArrowRight")
    wait_until(
        tour,
        lambda: slider.locator(".widget-readout").inner_text() == "1.00" and "No word" not in out.inner_text(),
        "and back",
    )
    tour.screenshot(path=lab.shots / "slider.png")


def test_a_figure_follows_its_control(tour, lab):
    "A heat map is another picture after another choice"
    found = tour.locator(".jp-OutputArea-output", has=tour.locator(".widget-dropdown", has_text="order")).first
    found.scroll_into_view_if_needed()
    image = found.locator(".widget-html-content img")
    before = image.get_attribute("src")
    found.locator(".widget-dropdown", has_text="against").locator("select").select_option("")
    wait_until(tour, lambda: image.get_attribute("src") != before, "the figure changes")
    assert "accuracy" in image.get_attribute("alt")
    tour.screenshot(path=lab.shots / "heat.png")


def test_the_picture_of_the_readme(lab, browser):
    "The playground with a pair of the mini world, every second word exchanged"
    page = opened(
        lab,
        browser,
        write(
            lab,
            "picture.ipynb",
            "from macular.ui.playground import playground\n"
            "playground('pawsx', item=1, langs=('de', 'es', 'fr', 'ja', 'zh'), word=0.6)",
        ),
    )
    run_all(page, 60)
    out = first_output(page)
    wait_until(page, lambda: "Leo hands the strong bed to Yuki near Berlin" in out.inner_text(), "the pair is shown")
    out.screenshot(path=lab.shots / "playground.png")
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_can_be_read(tour, lab, theme):
    "Every text of every view has the contrast that WCAG asks of ordinary text, on light and on dark"
    tour.evaluate(f"() => jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
    tour.wait_for_selector(
        f"body[data-jp-theme-name='{theme}']", state="attached"
    )  # of no height: nothing of it is "visible"
    tour.wait_for_timeout(1000)
    first_output(tour).scroll_into_view_if_needed()
    tour.screenshot(path=lab.shots / f"{theme}.png")
    worst = tour.evaluate(CONTRAST)
    assert len(worst) == 3 and worst[0][0] >= 4.5, worst


def test_nothing_piles_up(lab, browser):
    "The same cell five times: as many widgets as after once, one set of controls on the page"
    count = "from ipywidgets.widgets.widget import _instances\nlen(_instances)"
    page = opened(
        lab, browser, write(lab, "again.ipynb", "from macular.ui.playground import playground\nplayground()", count)
    )
    numbers = []
    for _ in range(5):
        run_all(page, 60)
        numbers.append(page.evaluate(OUTPUTS)[1][0]["data"]["text/plain"])
    wait_until(page, lambda: page.locator(".widget-hslider", has_text="word rate").count() == 1, "one slider")
    assert len(set(numbers)) == 1 and int(numbers[0]) > 20
    page.close()


# live


def test_buttons_reach_a_training_elsewhere(lab, browser):
    "Pause, evaluate, resume, stop: through the folder, while the training runs in another process"
    begin = (
        "import tempfile\nfrom macular.ui.live import *\nfrom macular.train.config import Job\n"
        "out = tempfile.mkdtemp()\n"
        "process = begin(Job(task='pawsx', method='finetune', preset='mini', rounds=20, langs=('en',), out=out))\n"
        "_ = wait_for(out, lambda s: s.step > 3)"
    )
    page = opened(lab, browser, write(lab, "watch.ipynb", begin, "live(out, seconds=0.3)", "process.kill()"))
    page.set_default_timeout(180_000)
    for _ in range(2):
        page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    out = page.locator(".jp-OutputArea-output", has=page.locator(".jupyter-button")).last

    def says(*words):
        wait_until(page, lambda: all(w in out.inner_text() for w in words), " and ".join(words))

    def press(name):
        out.locator(".jupyter-button", has_text=name).click(timeout=30_000)

    says("running", "step")
    press("pause")
    says("paused", "asked to pause")
    for _ in range(10):  # a step under way ends
        before = out.inner_text()
        page.wait_for_timeout(3000)
        if out.inner_text() == before:
            break
    assert out.inner_text() == before
    press("evaluate")
    says("asked to evaluate", "paused")
    press("resume")
    wait_until(page, lambda: "running" in out.inner_text() and out.inner_text() != before, "it goes on")
    press("stop")
    says("stopped")
    page.screenshot(path=lab.shots / "live.png")
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-below')")
    assert page.wrong == []
    page.close()


# other people's text


def test_text_of_others_runs_nowhere(lab, browser):
    "Twelve payloads in every view, in a page that would run them"
    shutil.copy(lab.nbs.parent / "tests" / "xss_payloads.py", lab.nbs / "xss_payloads.py")
    cells = ["import tempfile\nfrom xss_payloads import views\nmade = views(tempfile.mkdtemp())\nlist(made)"]
    from xss_payloads import VIEWS

    page = opened(lab, browser, write(lab, "payloads.ipynb", *cells, *(f"made[{name!r}]" for name in VIEWS)))
    run_all(page, 300)
    page.wait_for_timeout(2000)
    assert page.locator(".jupyter-widgets .widget-html-content").count() >= len(VIEWS)
    assert page.wrong == [] and page.evaluate("() => window.__pwned") is None
    assert page.locator(".widget-html-content").filter(has_text="__pwned").count() >= len(VIEWS) - 1, (
        "the payloads are not on the page"
    )  # the heat map shows them in its picture
    page.screenshot(path=lab.shots / "payloads.png")
    page.close()


def test_negative_control_unescaped_text_would_run(lab, browser):
    "The same page, the escaping left out: one payload at least runs, so the test above can fail"
    source = "from ipywidgets import HTML\nfrom xss_payloads import PAYLOADS\nHTML(' '.join(PAYLOADS))"
    page = opened(lab, browser, write(lab, "unsafe.ipynb", source))
    run_all(page, 60)
    wait_until(page, lambda: page.evaluate("() => window.__pwned") is not None or page.wrong, "a payload runs", 20)
    page.close()
    assert PAYLOADS
