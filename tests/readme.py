"""README.md is nbs/index.ipynb as Markdown: `python tests/readme.py` writes it.

Cells that begin with `#| hide` are left out, `#| echo: false` hides the code and keeps what it shows, and links are
made relative to the project's root. A figure is written beside the notebooks, under the name of its cell's `#|
label: …` and with the text of its `#| fig-alt: …`. A test fails when the two differ."""

import re
from base64 import b64decode
from pathlib import Path
from posixpath import normpath

import nbformat

root = Path(__file__).resolve().parents[1]
FIGURES = root / "nbs" / "figures"


def directive(cell, name):
    "Return the value of a cell's directive `#| name: …`"
    found = re.search(rf"^#\| {name}: (.+)$", cell.source, re.M)
    if not found:
        raise ValueError(f"a figure of README.md needs `#| {name}: …` in its cell: {cell.source[:200]}")
    return found[1].strip()


def shown(cell):
    "The Markdown of one cell: its text, or its code and what the code displayed"
    source = cell.source
    if cell.cell_type == "markdown":
        return [source]
    if cell.cell_type != "code" or source.startswith("#| hide"):
        return []
    parts = [] if source.startswith("#| echo: false") else [f"```python\n{source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/markdown" in data:
            parts.append(data["text/markdown"])
        elif "image/png" in data:
            parts.append(f"![{directive(cell, 'fig-alt')}](figures/{directive(cell, 'label')}.png)")
        elif "text/plain" in data:
            parts.append(f"```\n{data['text/plain']}\n```")
        else:
            raise ValueError("README.md holds Markdown, text and PNG only")
    return parts


def figures(notebook=root / "nbs" / "index.ipynb"):
    "The figures of README.md: name -> bytes"
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    return {
        f"{directive(c, 'label')}.png": b64decode(o["data"]["image/png"])
        for c in cells
        for o in c.outputs
        if "image/png" in o.get("data", {})
    }


def readme(notebook=root / "nbs" / "index.ipynb"):
    "The text of README.md"
    cells = nbformat.read(notebook, as_version=4).cells
    text = "\n\n".join(part.strip() for cell in cells for part in shown(cell))
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"]({normpath('nbs/' + m[1])})", text) + "\n"


if __name__ == "__main__":
    (root / "README.md").write_text(readme(), encoding="utf-8")
    FIGURES.mkdir(exist_ok=True)
    for name, data in figures().items():
        (FIGURES / name).write_bytes(data)
