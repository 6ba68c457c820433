"""An index of the paper's equations, algorithms, tables and figures: read from docstrings, terms, formulas and headings,
never typed."""

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
    "`3–6 and 10` -> 3, 4, 5, 6, 10"
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
    term: str = ""  # the name under which rows weigh it

    whole: bool = True  # about all of it, not some of its lines

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
        "A heading without its number; a notebook's idea where its title is nothing but one"
        said = re.sub(r"^(Tables?|Figures?) [\d and]+(: )?", "", self.text)
        return heading(self.notebook)[1] if self.text == heading(self.notebook)[0] else said


def _definition(node, module, notebook):
    "A definition, if its docstring begins with a place in the paper or a decorator makes it a term"
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
    "Every definition of the package that says which part of the paper it is"
    for path in sorted((ROOT / "macular").rglob("[!_]*.py")):
        text = path.read_text("utf-8")
        notebook = re.search(r"File to edit: (?:\.\./)+nbs/([\w/]+)\.ipynb", text)[1]
        module = ".".join(path.relative_to(ROOT / "macular").with_suffix("").parts)
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (found := _definition(node, module, notebook)):
                yield found


def formulas():
    "Equation number -> the formula as a notebook prints it; one with a number of its own before one for several"
    found = sorted(
        ((list(numbers(m[2])), name, m[1].strip()) for name, text in prose() for m in FORMULA.finditer(text)),
        key=lambda f: len(f[0]),
        reverse=True,
    )
    return {
        n: Place(name, f"formula.{'.'.join(map(str, shared))}", text) for shared, name, text in found for n in shared
    }


def headings():
    "(kind, number) of a table or figure -> the headings that name it"
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
    "The tables whose numbers are data: the keys of `macular.results.paper.paper`"
    for node in ast.parse((ROOT / "macular" / "results" / "paper.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "paper":
            return {int(k.value.removeprefix("table")) for k in node.value.keys}


class Index:
    "All of it, looked up by (kind, number)"

    def __init__(self):
        self.formulas, self.headings, self.defined = formulas(), headings(), {}
        for d in definitions():
            for ref in sorted(d.refs):
                self.defined.setdefault(ref, []).append(d)

    def all(self):
        "Every part of the paper that is found somewhere, in the paper's order of kinds"
        known = (
            self.defined.keys()
            | self.headings.keys()
            | {("Eq", n) for n in self.formulas}
            | {("Table", n) for n in printed()}
        )
        return sorted(known, key=lambda ref: (list(KINDS).index(ref[0]), ref[1]))

    def of(self, ref):
        "The definitions of one part, the most telling first: public, all of it, a term, about nothing else"
        return sorted(self.defined.get(ref, ()), key=lambda d: (not d.public, not d.whole, not d.term, len(d.refs)))

    def title(self, ref):
        """Return the title of a part of the paper, in the words of the definition that is about nothing else, else of the first; a table's or
        figure's heading"""
        said = [d.says for d in self.of(ref)] + [p.says for p in self.headings.get(ref, ())]
        return next(iter(said), "")
