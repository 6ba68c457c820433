"""Generate the reference pages: modules, command line, and parameters of a job."""

import subprocess
import sys

import notebooks as nbs
import papermill


def by_chapter():
    "Return chapter -> its modules, in the order of the notebooks"
    found = {}
    for name, nb in nbs.notebooks().items():
        if module := nbs.module_of(nb):
            found.setdefault(nbs.kind(name), []).append(module)
    return found


def api(module, name):
    "Return a module's page; griffe reads the source without importing it"
    return f"# macular.{module}\n\nFrom the notebook [{name}](../nbs/{name}.md).\n\n::: macular.{module}\n"


def command_line():
    "Return the help of every command, from typer"
    done = subprocess.run(
        [sys.executable, "-m", "typer", "macular.cli", "utils", "docs", "--name", "macular"],
        cwd=nbs.ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"typer could not document macular.cli: {done.stderr[-2000:]}")
    return done.stdout.replace("# `macular`", "# The command line", 1).replace("```console", "```console { .no-copy }")


def parameters():
    "Return the parameters of nbs/train.ipynb, as read by papermill"
    rows = [
        f"| `{p['name']}` | {p['inferred_type_name']} | `{p['default']}` | {p['help'].replace('|', chr(92) + '|')} |"
        for p in papermill.inspect_notebook(str(nbs.ROOT / "nbs" / "train.ipynb")).values()
    ]
    return "\n".join(
        [
            "# Parameters of a job",
            "",
            "> The parameters of `papermill nbs/train.ipynb runs/xnli.ipynb -p NAME VALUE` and "
            "`macular train NAME=VALUE`.",
            "",
            "The notebook is [train](../nbs/train.md); presets and allowed values are in "
            "[train/02_config](../nbs/train/02_config.md).",
            "",
            "| name | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def pages():
    "Return path -> Markdown"
    modules = {nbs.module_of(nb): name for name, nb in nbs.notebooks().items() if nbs.module_of(nb)}
    return {
        "reference/command_line.md": command_line(),
        "reference/parameters.md": parameters(),
        **{f"api/{m}.md": api(m, name) for m, name in modules.items()},
    }
