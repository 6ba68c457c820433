"""Convert a notebook to a page: text, code without directives, and committed outputs, without executing anything."""

import ast
import re
import tomllib
from base64 import b64decode
from functools import cache
from html import escape
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
FORMULA = re.compile(r"^\$\$[^$]+?\\tag\{([\d, ]+)\}\s*\$\$", re.M)
CODE_OR_LINK = re.compile(
    r"(?P<code>^(?P<fence>```+).*?^(?P=fence)|(?P<ticks>`+)(?:(?!`).)+(?P=ticks)(?!`))|(?P<open>\]\()(?P<link>(?!https?:|#|mailto:)[^)\s#]+)",
    re.M | re.S,
)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["macular"]
CHAPTERS, SHELVES = SETTINGS["chapters"], SETTINGS["shelves"]  # folder -> its question
TUTORIALS = ("start", "train")


@cache
def notebooks():
    "Return path below nbs/ without suffix -> notebook; the top level first, then the folders in order"
    folders = ["", *CHAPTERS, *SHELVES]
    paths = [path for folder in folders for path in sorted((ROOT / "nbs" / folder).glob("[!_.]*.ipynb"))]
    return {
        path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): nbformat.read(path, as_version=4) for path in paths
    }


def prose():
    "Yield (notebook, text) of every text cell"
    return ((name, c.source) for name, nb in notebooks().items() for c in nb.cells if c.cell_type == "markdown")


def heading(name):
    "Return (title, subtitle) of a notebook"
    lines = notebooks()[name].cells[0].source.splitlines()
    return lines[0].lstrip("# "), next((line[2:] for line in lines if line.startswith("> ")), "")


def kind(name):
    "Return the section of the site that contains a notebook"
    folder = name.rpartition("/")[0]
    if folder in CHAPTERS or folder == "paper":
        return folder
    if folder == "howto":
        return "How-tos"
    if folder:
        return "Jobs"
    if name in TUTORIALS:
        return "Tutorials"
    return "core" if name[:2].isdigit() else "Jobs"


def module_of(nb):
    "Return the module that a notebook exports, or None"
    return next(
        (m[1] for c in nb.cells if c.cell_type == "code" and (m := re.match(r"#\| *default_exp +([\w.]+)", c.source))),
        None,
    )


def defined(source):
    "Yield the names that a cell defines"
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


class Page:
    "Conversion of a notebook to Markdown; `files` are its figures, `raw` the HTML that stays unchanged"

    def __init__(self, name, target):
        self.name, self.nb, self.files, self.raw, self.near = name, notebooks()[name], {}, {}, heading(name)[0]
        self.target = target  # function that returns the target of a link in the site
        self.module, self.anchored, self.flat = module_of(self.nb), set(), name.replace("/", "_")
        self.file = f"macular/{(self.module or '').replace('.', '/')}.py"

    def markdown(self):
        parts = [part for i, cell in enumerate(self.nb.cells) for part in self.cell(i, cell)]
        return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

    def cell(self, i, cell):
        if cell.cell_type == "markdown":
            return [self.text(cell.source)]
        if cell.cell_type != "code" or cell.source.startswith("#| hide"):
            return []
        return [
            *self.code(cell),
            *(part for n, output in enumerate(cell.outputs) for part in self.output(f"{i}-{n}", cell, output)),
        ]

    def text(self, source):
        "Convert a text cell; numbered formulas get an anchor"
        prose = re.sub(r"```.*?```|\$\$.*?\$\$|^[#>|].*$", "", source, flags=re.S | re.M).strip()
        titles = re.findall(r"^#+ (.+)$", source, re.M)
        if prose or titles:
            self.near = re.sub(r"[*`$\\{}]|\]\(.*?\)|\[", "", prose.split("\n\n")[-1].replace("\n", " ") or titles[-1])
        return FORMULA.sub(
            lambda m: f"{self.anchor('formula.' + '.'.join(re.findall(r'[0-9]+', m[1])))}\n\n{m[0]}\n",
            self.linked(source),
        )

    def linked(self, markdown):
        "Replace the links outside code by their targets in the site"
        return CODE_OR_LINK.sub(lambda m: m[0] if m["code"] else f"{m['open']}{self.target(m['link'])}", markdown)

    def anchor(self, name):
        "Return an anchor for links; only the first one of a name is used"
        if name in ANCHORS and ANCHORS[name] != self.name or name in self.anchored:
            return ""
        ANCHORS[name] = self.name
        self.anchored.add(name)
        return f"[](){{#{name}}}&#8203;"  # text separates it from the next heading

    def code(self, cell):
        "Return the code of a cell without directives; exported code is titled with its module"
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
        exported = re.match(r"#\| *exporti?s?\b", cell.source)
        names = [self.anchor(f"cell.{self.module}.{name}") for name in defined(source)] if exported else []
        if not source.strip() or "#| echo: false" in cell.source:
            return names
        return ["".join(names), fence(source.strip("\n"), f'python title="{self.file}"' if exported else "python")]

    def output(self, key, cell, output):
        "Return an output of a cell in its richest static form"
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/markdown" in data:
            return [self.linked(data["text/markdown"])]
        if "text/html" in data:
            return [self.html(key, data["text/html"])]
        if "image/png" in data:
            return [self.image(key, cell, data["image/png"])]
        return (
            [fence(data["text/plain"].rstrip(), "{ .text .output .no-copy data-search-exclude='' }")]
            if data["text/plain"].strip()
            else []
        )

    def html(self, key, html):
        self.raw[token := f"raw-{self.flat}-{key}-raw"] = (
            f'<div class="output html" data-search-exclude="">{html}</div>'
        )
        return token

    def image(self, key, cell, data):
        "Save a figure; its alternative text is the cell's `fig-alt` or the sentence before it"
        self.files[name := f"{self.name.rpartition('/')[2]}-{key}.png"] = b64decode(data)
        said = re.search(r"^#\| fig-alt: (.+)$", cell.source, re.M)
        alt = said[1] if said else f"Figure: {self.near[-200:].rpartition('. ')[2] or self.near}"
        return f"![{escape(alt).replace(']', '')}]({self.target(name)}){{ loading=lazy }}"


ANCHORS = {}  # anchor -> the notebook that has it


def fence(text, info):
    "Return a fenced block, with a fence longer than any inside"
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks} {info}\n{text}\n{ticks}"
