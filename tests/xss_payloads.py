"""A world whose every text, label, translation and name wants to be run by a browser, and all views of it."""

import json
from pathlib import Path

PAYLOADS = (
    "<script>window.__pwned=1</script>",
    '<img src=x onerror="window.__pwned=2">',
    '<svg onload="window.__pwned=3"></svg>',
    '<a href="javascript:window.__pwned=4">window.__pwned</a>',
    "</script><script>window.__pwned=5</script>",
    "<style>*{display:none}</style>window.__pwned=6",
    '<iframe srcdoc="<script>parent.__pwned=7;window.__pwned=7</script>"></iframe>',
    "&lt;img src=x onerror=window.__pwned=8&gt;",
    "\u202e<b onmouseover=window.__pwned=9>\u2066",
    "\x00<img src=x onerror=window.__pwned=10>",
    "[window](javascript:window.__pwned=11)",
    "$\\frac{window.__pwned=12}$ \"' onload=window.__pwned=12 x='",
)
HIDDEN = ("\x00", "\u202e", "\u2066")
PLAIN = tuple(p for p in PAYLOADS if not any(c in p for c in HIDDEN))  # what a dictionary lets in
VIEWS = (
    "playground",
    "playground, typed",
    "show_batch",
    "board",
    "overview",
    "versus",
    "heat_map",
    "errors",
    "errors, all",
    "live",
    "message",
)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", encoding="utf-8"
    )
    return path


def a_task(folder):
    "A task file, its rows in two languages, and a dictionary"
    labels = PAYLOADS[:2]
    write(
        folder / "odd.toml",
        'name = "odd"',
        f"title = {json.dumps(PAYLOADS[4])}",
        f"labels = {json.dumps(labels)}",
        'langs = ["en", "de"]',
        f"fields = {json.dumps(PAYLOADS[8:10])}",
        "[source]",
        'files = "{split}.{lang}.jsonl"',
        'id = "id"',
        'text_a = "a"',
        'text_b = "b"',
        'label = "y"',
    )
    for split in ("train", "dev", "test"):
        for lang in ("en", "de"):
            rows = [
                {"id": f"{p}-{i}", "a": f"the dog sees {p}", "b": PAYLOADS[(i + 5) % len(PAYLOADS)], "y": labels[i % 2]}
                for i, p in enumerate(PAYLOADS)
            ]
            write(folder / f"{split}.{lang}.jsonl", *rows)
    write(folder / "words" / "en-de.txt", *(f"{word}\t{p}" for word in ("the", "dog", "sees") for p in PLAIN))
    return folder / "odd.toml"


def a_run(folder):
    "A run of that task, as it stands on disk"
    import pandas as pd

    task, run, labels = a_task(folder), folder / "run", PAYLOADS[:2]
    config = {"task": "odd", "method": "cosda_ml", "preset": "mini", "backbone": "mini-xlmr", "seed": 0}
    write(run / "config.json", config)
    write(run / "environment.json", {"task": str(task), "lexicon_dir": str(folder / "words"), "out": str(folder)})
    write(
        run / "result.json",
        {
            "status": "complete",
            "config": config,
            "split": "test",
            "trainings": {"cosda_ml": {"key": "odd"}},
            "notes": list(PAYLOADS),
        },
    )
    rows = [
        {
            "item": f"{p}-{i}",
            "language": lang,
            "label": labels[i % 2],
            "prediction": labels[(i + (lang == "de")) % 2],
            **{f"p_{y}": 0.95 if y == labels[(i + (lang == "de")) % 2] else 0.05 for y in labels},
        }
        for lang in ("en", "de")
        for i, p in enumerate(PAYLOADS)
    ]
    pd.DataFrame(rows).to_parquet(run / "predictions.parquet")
    training = folder / "trainings" / "odd"
    write(training / "environment.json", {"title": PAYLOADS[1], "tasks": PAYLOADS, "steps": 12})
    write(training / "training.json", {"rounds": []})
    parts = dict(zip(PAYLOADS, range(12)))
    write(
        training / "history.jsonl",
        *(
            {"step": i, "round": 1, "phase": phase, "pass": 1, "batch": i, "loss": 1.0} | parts
            for i, phase in ((1, PAYLOADS[0]), (2, "net"))
        ),
        {"step": 2, "round": 1, "dev": parts, f"{PAYLOADS[2]}_disc": {"accuracy": 0.9, "chance": 0.5}},
    )
    return run


def records():
    "Results of methods and languages that nobody should name so"
    from macular.results.records import Record

    langs = ("en", *PAYLOADS)
    return [
        Record(
            p,
            "xnli",
            {"en_dev": {x: 50.0 + (7 * i + 3 * j + seed) % 40 for j, x in enumerate(langs)}},
            seed=seed,
            notes=PAYLOADS,
            tags={"note": p, "<b>": p},
        )
        for i, p in enumerate(PAYLOADS)
        for seed in (0, 1)
    ]


def views(folder) -> dict:
    "Every view of the workbench, of payloads only"
    from macular.exceptions import DataError
    from macular.ui.board import board, heat_map, versus
    from macular.ui.error_browser import errors
    from macular.ui.live import live
    from macular.ui.playground import playground, show_batch
    from macular.ui.views import View

    run, found = a_run(Path(folder)), records()

    def refuse():
        raise DataError(" ".join(PAYLOADS))

    return {
        "playground": playground(run=run, word=1.0),
        "playground, typed": playground(text_a=" ".join(PAYLOADS), text_b=PAYLOADS[0], word=1.0),
        "show_batch": show_batch(run=run, n=12, lang="de"),
        "board": board(found),
        "overview": board(found, show="tasks", contains="window"),
        "versus": versus(found),
        "heat_map": heat_map(found[:6]),
        "errors": errors(run),
        "errors, all": errors(run, kind="all", number=3),
        "live": live(run),
        "message": View(refuse),
    }


def reprs() -> dict:
    "One of every class that shows itself in a notebook, of payloads wherever it takes a text; its markup by class"
    from dataclasses import replace

    from macular.core import Difference, diff
    from macular.data import check, lexicon
    from macular.data.tasks import Task, _Facts
    from macular.deploy import distill
    from macular.exceptions import DataError
    from macular.jobs import rerun
    from macular.jobs.plan import plan
    from macular.jobs.search import Search
    from macular.results import compare, figures
    from macular.results.formats import Cell, Effect, Table
    from macular.text.code_switch import CodeSwitch, Place
    from macular.train.config import Job, presets
    from macular.train.methods import macular
    from macular.ui.views import _Picture

    def refuse():
        raise DataError(" ".join(PAYLOADS))

    one, other = PAYLOADS[:2]
    every = {p: (p, p) for p in PAYLOADS}
    rows = [{p: p for p in PAYLOADS}, dict.fromkeys(PAYLOADS, " ".join(PAYLOADS))]
    table = Table(PAYLOADS, [list(PAYLOADS), [Cell(1.0, best=True), *PAYLOADS[1:]]], " ".join(PAYLOADS), PAYLOADS)
    progress = figures.Progress()
    progress.start({"method": replace(macular, title=one), "steps": 9, "phases": [(other, 9)]})
    progress.take(
        {"step": 1, "phase": other, "round": 1, "pass": 1, "batch": 1, "loss": 1.0} | dict.fromkeys(PAYLOADS, 1.0)
    )
    [switched] = CodeSwitch(("de",), word=1.0)([" dog ".join(PAYLOADS)], ["1"], {"de": {"dog": (one, other)}}, Place())
    parameters = dict.fromkeys(("data_dir", "lexicon_dir", "synonyms", "tree_dir"), other)
    here = parameters | {"preset": "mini", "backbone": "mini-bert", "task": "xnli"}
    shown = [
        diff(dict(zip("abcdefghijkl", PAYLOADS)), dict(zip("abcdefghijkl", PAYLOADS[::-1]))),
        check._DataReport(rows, rows, list(PAYLOADS), list(PAYLOADS)),
        lexicon._CoverageReport(rows),
        lexicon.Lexicon({"de": {"dog": PLAIN}}),
        plan([here | {"method": m} for m in ("finetune", "syn")]),
        replace(macular, title=" ".join(PAYLOADS)),
        progress,
        compare.Comparison((one, other), Effect(1.0, 0.5, 1.5, 0.01, " ".join(PAYLOADS)), table, every, PAYLOADS),
        rerun._RunComparison((one, other), (1, 2), False, Difference(every), Difference(every)),
        records()[0],
        Search({"task": "xnli", "preset": "mini", "method": "finetune"}, ({p: [p] for p in PAYLOADS},)),
        Job(**parameters),
        replace(presets["mini"], backbone=" ".join(PAYLOADS)),
        table,
        _Facts(dict(zip(PAYLOADS, PAYLOADS))),
        Task("odd", PAYLOADS, ("de",), title=" ".join(PAYLOADS), fields=(one, other)),
        switched,
        _Picture(refuse),
        distill._DistillationReport(table, table, PAYLOADS),
    ]
    return {f"{type(x).__module__.removeprefix('macular.')}.{type(x).__name__}": x for x in shown}
