"""Hooks of mkdocs.yml: generate, order and convert the pages of the site."""

import re
from html import unescape
from posixpath import basename, dirname, normpath, relpath

import notebooks as nbs
import reference
from equations import KINDS, Index
from latex2mathml.converter import convert
from markdown.extensions.toc import slugify
from mkdocs.structure.files import File

raw = {}  # token -> HTML that a notebook showed


def home_of(name):
    return "index.md" if name == "index" else f"nbs/{name}.md"


def on_config(config):
    nbs.notebooks.cache_clear()
    nbs.ANCHORS.clear()
    raw.clear()
    return config


def on_files(files, config):
    "Add the generated pages and files"
    for name in nbs.notebooks():
        page = nbs.Page(name, lambda link, name=name: target(link, name, files, config))
        boost = 8 if name.startswith("howto/") else None  # the search ranks how-tos first
        add(files, config, home_of(name), front(nbs.heading(name)[1], boost) + page.markdown())
        raw.update(page.raw)
        for file, data in page.files.items():
            add(files, config, f"{dirname(home_of(name)) or 'nbs'}/{file}", data)
    config.extra["index"] = index = Index()
    for path, text in {**equation_pages(index, files), **reference.pages()}.items():
        add(files, config, path, text)
    config.nav = navigation(files, index)
    return files


def add(files, config, path, content):
    "Add a generated file"
    files.append(File.generated(config, path, content=content))


def front(description, boost=None):
    "Return a page's metadata"
    said = re.sub(r"[`$\\*]", "", description).replace('"', "'")
    return f'---\ndescription: "{said}"\n' + (f"search:\n  boost: {boost}\n" if boost else "") + "---\n\n"


def target(link, name, files, config):
    "Return the target of a notebook's link in the site: a page, a figure, or the file as text"
    here, path = dirname(home_of(name)) or ".", normpath(f"nbs/{dirname(name)}/{link}")
    if path.endswith(".ipynb"):
        return relpath(home_of(path[4:-6]), here)
    there = path if path.endswith((".svg", ".png")) else f"files/{path.strip('.').replace('/', '-')}.txt"
    if (nbs.ROOT / path).is_file() and not files.get_file_from_path(there):
        add(files, config, there, (nbs.ROOT / path).read_bytes())
    return relpath(there, here)


def navigation(files, index):
    "Return the navigation: home, then sections; notebooks by chapter"
    by = {}
    for name in nbs.notebooks():
        if name != "index":
            by.setdefault(nbs.kind(name), []).append({title(name): home_of(name)})
    order = list(nbs.TUTORIALS)
    by["Tutorials"].sort(key=lambda entry: order.index(next(iter(entry.values()))[4:-3]))
    explained = sorted(f.src_uri for f in files if f.src_uri.startswith("explanations/"))
    chapters = [{name: by[name]} for name in ("core", *nbs.CHAPTERS, "paper", "Jobs") if name in by]
    api = [
        {name: [{m.rpartition(".")[2]: f"api/{m}.md"} for m in found]} for name, found in reference.by_chapter().items()
    ]
    return [
        {"Home": "index.md"},
        {"Tutorials": by["Tutorials"]},
        {"How-tos": by["How-tos"]},
        {"Explanations": explained},
        {"Equations": ["equations/index.md", *({label(ref): page_of(ref)} for ref in index.all())]},
        {"Notebooks": chapters},
        {"Reference": ["reference/command_line.md", "reference/parameters.md", {"API": api}]},
    ]


def title(name):
    "Return a notebook's number and title for the navigation"
    number = name.rpartition("/")[2][:2]
    return f"{number} {nbs.heading(name)[0]}" if number.isdigit() else nbs.heading(name)[0]


# the equation index


def code_links(d, term=True):
    "Return links to a definition's API entry and cell"
    cell = f"[{d.notebook}][cell.{d.module}.{d.name}]"
    if not d.public:
        return f"in {cell}"
    return f"[`{d.name}`][macular.{d.module}.{d.name}] in {cell}" + (f" (term `{d.term}`)" if term and d.term else "")


def label(ref):
    return f"{KINDS[ref[0]]} {ref[1]}"


def page_of(ref):
    return f"equations/{ref[0].lower()}-{ref[1]}.md"


def heading_of(place, at="."):
    "Return the link to a heading from a page in the folder `at`"
    return relpath(home_of(place.notebook), at) + (
        f"#{slugify(re.sub('[`*]', '', place.anchor), '-')}" if place.anchor else ""
    )


def place_links(index, ref, at="."):
    "Return links to the headings that show a table or figure, and to a table's data"
    found = [f"[{p.text}]({heading_of(p, at)}) in {p.notebook}" for p in index.headings.get(ref, ())]
    return found + ([f'[`paper["table{ref[1]}"]`][cell.results.paper.paper]'] if ref[0] == "Table" else [])


def part(index, ref, explained):
    "Return the page of one part of the paper: title, formula, and links"
    lines = [f"# {': '.join(filter(None, (label(ref), index.title(ref))))}"]
    if ref[0] == "Eq" and ref[1] in index.formulas:
        lines.append(formula(index, ref[1]))
    found = [f"- {code_links(d)}: {d.says}" for d in index.of(ref)] + [
        f"- {link}" for link in place_links(index, ref, "equations")
    ]
    if ref[0] == "Eq" and ref[1] in index.formulas:
        found.append(f"- the formula in [{index.formulas[ref[1]].notebook}][{index.formulas[ref[1]].anchor}]")
    found += [f"- explained in [{what}](../{path})" for path, what in explained.get(ref, ())]
    return front(f"{label(ref)} of the paper", 2) + "\n\n".join([*lines, "\n".join(found)]) + "\n"


def formula(index, n):
    place = index.formulas[n]
    return f"$${place.text} \\tag{{{n}}}$$"


def explanations(files):
    "Return (kind, number) -> the explanations that show it"
    found = {}
    for file in files:
        if not file.src_uri.startswith("explanations/"):
            continue
        text = file.content_string
        for m in re.finditer(r"\{\{ (\w+) (\d+) \}\}", text):
            found.setdefault((m[1].capitalize(), int(m[2])), []).append(
                (file.src_uri, re.search(r"^# (.+)$", text, re.M)[1])
            )
    return found


def row(index, ref):
    "Return a row of the index: number, title, names in code, and notebooks"
    code = [f"[`{d.name}`][macular.{d.module}.{d.name}]" for d in index.of(ref) if d.public] or place_links(index, ref)[
        len(index.headings.get(ref, ())) :
    ]
    places = {}
    for d in index.of(ref):
        places.setdefault(d.notebook, f"[{d.notebook}][cell.{d.module}.{d.name}]")
    for p in index.headings.get(ref, ()):
        places.setdefault(p.notebook, f"[{p.notebook}]({heading_of(p, 'equations')})")
    return f"| [{label(ref)}]({basename(page_of(ref))}) | {index.title(ref)} | {', '.join(code)} | {', '.join(places.values())} |"  # noqa: E501


def equation_pages(index, files):
    "Return the index of all numbered parts of the paper, and a page for each"
    explained = explanations(files)
    head = (
        "# Equations, algorithms, tables and figures of the paper\n\n"
        "> From the paper's number to the name in code and the cell that defines it.\n\n"
        "Generated from docstrings, terms, formulas and headings. Symbols and their names in code are on the [first "
        "page](../index.md#symbols-and-names)."
    )
    rows = ["| the paper | title | in code | notebook |", "|---|---|---|---|", *(row(index, ref) for ref in index.all())]
    first = (
        front("Every equation of the paper, its name in code and its cell")
        + f"{head}\n\n<div markdown data-search-exclude>\n\n"
        + "\n".join(rows)
        + "\n\n</div>\n"
    )
    return {"equations/index.md": first} | {page_of(ref): part(index, ref, explained) for ref in index.all()}


# conversion of every page


def on_page_markdown(markdown, page, config, files):
    "Replace `{{ eq 13 }}` in an explanation by the formula and its links"
    if not page.file.src_uri.startswith("explanations/"):
        return markdown
    page.meta.setdefault("search", {"boost": 2})
    return re.sub(
        r"\{\{ (\w+) (\d+) \}\}", lambda m: shown(config.extra["index"], (m[1].capitalize(), int(m[2]))), markdown
    )


def shown(index, ref):
    "Return a part of the paper for an explanation"
    if ref not in index.all():
        raise KeyError(f"the package and the notebooks have no {label(ref)}")
    links = [code_links(d) for d in index.of(ref)] + place_links(index, ref, "explanations")
    shape = f"{formula(index, ref[1])}\n\n" if ref[0] == "Eq" and ref[1] in index.formulas else ""
    return f"{shape}[{label(ref)}](../{page_of(ref)}): {'; '.join(links)}."


def on_page_content(html, page, config, files):
    "Convert formulas to MathML, and insert the outputs of notebooks"
    html = re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', lambda m: math(m[2], m[1] == "div"), html, flags=re.S)
    return re.sub(r"(?:<p>)?(raw-\w+-\d+-\d+-raw)(?:</p>)?", lambda m: raw[m[1]], html)


def math(tex, block):
    "Convert a formula to MathML, with its number"
    tex = unescape(tex).strip()[2:-2]
    number = re.search(r"\\tag\{(.+?)\}", tex)
    tex = re.sub(r"\\tag\{.+?\}", "", tex).replace(r"\arg\max", r"\operatorname{arg\,max}").replace(r"\_", "_").strip()
    tex = re.sub(r"\\(log|exp) (?=\w)", r"\\\1\\,", tex)
    made = convert(tex, display="block" if block else "inline").replace(
        "<math ", f'<math alttext="{tex.replace("&", "&amp;").replace("<", "&lt;").replace(chr(34), "&quot;")}" ', 1
    )
    if not block:
        return made
    return (
        f'<div class="equation" data-search-exclude="">{made}'
        + (f'<span class="number">({number[1]})</span>' if number else "")
        + "</div>"
    )
