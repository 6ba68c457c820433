"""README.md is nbs/index.ipynb as Markdown: `python tests/readme.py` writes it.

Cells that begin with `#| hide` are left out, `#| echo: false` hides the code and keeps what it shows, and links are made relative to
the project's root. A test fails when the two differ."""
import re
from pathlib import Path
from posixpath import normpath

import nbformat

root = Path(__file__).resolve().parents[1]


def shown(cell):
    "The Markdown of one cell: its text, or its code and what the code displayed"
    source = cell.source
    if cell.cell_type == "markdown": return [source]
    if cell.cell_type != "code" or source.startswith("#| hide"): return []
    parts = [] if source.startswith("#| echo: false") else [f"```python\n{source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/markdown" in data: parts.append(data["text/markdown"])
        elif "text/plain" in data and not any(k.startswith("image/") for k in data): parts.append(f"```\n{data['text/plain']}\n```")
        else: raise ValueError("README.md holds text only; show a table in Markdown or link a notebook with the figure")
    return parts


def readme(notebook=root / "nbs" / "index.ipynb"):
    "The text of README.md"
    cells = nbformat.read(notebook, as_version=4).cells
    text = "\n\n".join(part.strip() for cell in cells for part in shown(cell))
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"]({normpath('nbs/' + m[1])})", text) + "\n"


if __name__ == "__main__": (root / "README.md").write_text(readme(), encoding="utf-8")
