"""Build an index of the paper's equations, algorithms, tables and figures from docstrings, terms and headings."""

import ast
import re
from dataclasses import dataclass

from notebooks import ROOT, heading, prose

KINDS = {"Eq": "Eq.", "Alg": "Alg.", "Table": "Table", "Fig": "Fig."}
NAMED = re.compile(
    r"\b(Eq|Alg|Table|Fig)(?:s|ure|ures|orithm|orithms)?\.?\s*(\d+(?:(?:–|, (?:and )?| and )\d+(?!\d|–\d+ of))*)", re.I
)
FORMULA = re.compile(r"\$\$([^$]+?)\\tag\{([\d, ]+)\}\s*\$\$")


def numbers(text):
    "Parse numbers: `3–6 and 10` -> 3, 4, 5, 6, 10"
    for part in re.split(r",? and |, ", text):
        first, _, last = part.partition("–")
        yield from range(int(first), int(last or first) + 1)


def refs(text):
    "Return the parts of the paper that a text names: {(kind, number)}"
    return {(m[1].capitalize(), n) for m in NAMED.finditer(text) for n in numbers(m[2])}


@dataclass(frozen=True)
class Definition:
    "A function or class whose docstring begins with its place in the paper"

    name: str
    module: str
    notebook: str
    says: str
    refs: frozenset
    term: str = ""  # the name of the loss term

    whole: bool = True  # about the whole part, not some of its lines

    @property
    def public(self):
        return not self.name.startswith("_")


@dataclass(frozen=True)
class Place:
    "A formula or a heading in a notebook"

    notebook: str
    anchor: str  # empty: the top of the notebook
    text: str

    @property
    def says(self):
        "Return a heading without its number; a notebook's subtitle if the heading is its title"
        said = re.sub(r"^(Tables?|Figures?) [\d and]+(: )?", "", self.text)
        return heading(self.notebook)[1] if self.text == heading(self.notebook)[0] else said


def _definition(node, module, notebook):
    "Return a definition if its docstring begins with a part of the paper or its decorator makes it a term"
    doc = (ast.get_docstring(node) or "").split("\n")[0]
    calls = [d for d in node.decorator_list if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "term"]
    bound = {("Eq", k.value.value) for c in calls for k in c.keywords if k.arg == "eq"}
    begins = re.match(r"(?:Under |Lines? [\d–]+ of )?(?:Eq|Alg|Table|Fig)[a-z]*\.? ?\d", doc)
    found = (refs(doc) if begins else set()) | bound
    if not found:
        return None
    head, _, says = doc.partition(": ")
    return Definition(
        node.name,
        module,
        notebook,
        says or doc,
        frozenset(found),
        calls[0].args[0].value if calls else "",
        bool(says) and "line" not in head,
    )


def definitions():
    "Yield every definition of the package that names its part of the paper"
    for path in sorted((ROOT / "macular").rglob("[!_]*.py")):
        text = path.read_text("utf-8")
        notebook = re.search(r"File to edit: (?:\.\./)+nbs/([\w/]+)\.ipynb", text)[1]
        module = ".".join(path.relative_to(ROOT / "macular").with_suffix("").parts)
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (found := _definition(node, module, notebook)):
                yield found


def formulas():
    "Return equation number -> formula in a notebook; a formula with a single number is preferred"
    found = sorted(
        ((list(numbers(m[2])), name, m[1].strip()) for name, text in prose() for m in FORMULA.finditer(text)),
        key=lambda f: len(f[0]),
        reverse=True,
    )
    return {
        n: Place(name, f"formula.{'.'.join(map(str, shared))}", text) for shared, name, text in found for n in shared
    }


def headings():
    "Return (kind, number) of a table or figure -> the headings that name it"
    found = {}
    for name, text in prose():
        for m in re.finditer(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
            for ref in refs(m[1]):
                if ref[0] in ("Table", "Fig"):
                    found.setdefault(ref, []).append(Place(name, "" if m[1] == heading(name)[0] else m[1], m[1]))
        for m in re.finditer(r"!\[([^]]*)\]\(figure(\d)\.svg\)", text):
            found.setdefault(("Fig", int(m[2])), []).append(Place(name, "", m[1]))
    return found


def printed():
    "Return the numbers of the tables in `macular.results.paper.paper`"
    for node in ast.parse((ROOT / "macular" / "results" / "paper.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "paper":
            return {int(k.value.removeprefix("table")) for k in node.value.keys}


class Index:
    "The whole index, looked up by (kind, number)"

    def __init__(self):
        self.formulas, self.headings, self.defined = formulas(), headings(), {}
        for d in definitions():
            for ref in sorted(d.refs):
                self.defined.setdefault(ref, []).append(d)

    def all(self):
        "Return all parts of the paper in the index, sorted by kind and number"
        known = (
            self.defined.keys()
            | self.headings.keys()
            | {("Eq", n) for n in self.formulas}
            | {("Table", n) for n in printed()}
        )
        return sorted(known, key=lambda ref: (list(KINDS).index(ref[0]), ref[1]))

    def of(self, ref):
        "Return the definitions of a part; first public, complete and specific ones"
        return sorted(self.defined.get(ref, ()), key=lambda d: (not d.public, not d.whole, not d.term, len(d.refs)))

    def title(self, ref):
        "Return the title of a part of the paper, from its first definition or heading"
        said = [d.says for d in self.of(ref)] + [p.says for p in self.headings.get(ref, ())]
        return next(iter(said), "")
