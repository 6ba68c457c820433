"""Zero-shot cross-lingual text classification: train on labelled English text, score in other languages.

Two methods compared, without a network, in the miniature languages that ship with the package:

    from macular import Job, compare, read_records, run, table
    shared = {"task": "pawsx", "preset": "mini", "max_train": 64, "rounds": 1, "langs": ("de",)}
    a, b = (run(Job(method=method, **shared)).folder for method in ("cosda_ml", "finetune"))
    print(table(read_records("runs")).markdown())
    print(compare(read_records(a), read_records(b)).markdown())

Every name of `macular.__all__` is imported when it is first used; everything else is in a chapter, as `macular.text`.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {  # name -> (module, what it is called there)
    "Job": ("train.config", "Job"),
    "run": ("train.run", "run"),
    "Task": ("data.tasks", "Task"),
    "tasks": ("data.tasks", "tasks"),
    "methods": ("train.methods", "methods"),
    "load": ("data.tasks", "load"),
    "read_records": ("results.predictions", "read"),
    "compare": ("results.compare", "compare"),
    "table": ("results.tables", "overview"),
    "export": ("deploy.huggingface", "export"),
    "predict": ("deploy.huggingface", "predict_texts"),
}
__all__ = list(_HOMES)


def __getattr__(name):
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'macular' has no attribute {name!r}")
    module, there = _HOMES[name]
    value = globals()[name] = getattr(import_module(f"macular.{module}"), there)
    return value


def __dir__():
    """List what is loaded and what can be."""
    return sorted({*globals(), *_HOMES})
