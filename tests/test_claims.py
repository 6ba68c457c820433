"""The ledger of the paper's claims and the pages that read records: each sentence and verdict follows from numbers."""

import re
from pathlib import Path

import nbformat
import pytest

from macular.results.compare import compared, study

ROOT = Path(__file__).resolve().parents[1]


def cells(name):
    return nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4).cells


def code(name):
    return [c for c in cells(name) if c.cell_type == "code"]


def shown(cell):
    "The Markdown that a cell has put out"
    return "\n\n".join(o.data.get("text/markdown", "") for o in cell.outputs if "data" in o).strip()


def rows(text):
    "The lines of a Markdown table: column -> text"
    lines = [[x.strip() for x in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def counts(text):
    "A table of one line: name -> number"
    head, _, line = ([x.strip() for x in row.split("|")[2:-1]] for row in text.splitlines())
    return {name: int(n) for name, n in zip(head, line)}


@pytest.fixture(scope="module")
def claims():
    [text] = [shown(c) for c in code("paper/08_claims") if "paper scale" in shown(c)]
    return {int(row["#"]): row for row in rows(text)}


def test_improvements_are_relative_to_what_the_paper_calls_the_best_baselines(claims):
    own = claims[5]["the paper's own evidence"]
    assert own.startswith("**as printed**") and "Syn. and CoSDA-ML en 2.2 %, de 2.0 %, fr 3.4 %" in own
    assert "all baselines en 2.2 %, de 2.0 %, fr 3.3 %" in own


def test_rounding_explains_six_of_seven_averages(claims):
    own = claims[21]["the paper's own evidence"]
    assert "7 of 34 are not the rounded mean" in own and "rounding explains 6, not Fine-tuning XNLI 69.1" in own


def test_a_tie_is_a_word_and_has_no_number_of_seeds(claims):
    "65.4 and 65.4 are printed; the mean of one row's cells is 65.43"
    assert "on QADSM a tie" in claims[11]["the paper's own evidence"]
    assert "a tie as printed on" in claims[11]["paper scale"] and not re.search(r"\d", claims[11]["paper scale"])


def test_a_printed_difference_is_of_two_means_of_one_kind():
    names = {}
    exec(code("paper/08_claims")[0].source, names)
    exec(next(c.source for c in code("paper/08_claims") if "def printed" in c.source), names)
    printed = names["printed"]
    assert printed("macular_nots", "macular_nots_wo_pawsx", "qadsm") == 0
    assert printed("macular_nots", "macular_nots_wo_qam", "xnli") == -0.2
    assert printed("macular", "cosda_ml", "xnli") == pytest.approx(4 / 15)
    assert names["own"]([("macular_nots", "macular_nots_wo_pawsx")])[0] == "contradicted by its own table"


def test_the_tally_counts_what_is_supported_in_part_apart(claims):
    [text] = [shown(c) for c in code("paper/08_claims") if "def tally" in c.source]
    paper, mini = map(counts, text.split("\n\n"))
    said = [row["mini world"].strip("*") for row in claims.values()]
    assert mini["supported"] == said.count("supported")
    assert mini["supported on some"] == sum(v.startswith("supported on") for v in said) > 0
    assert sum(mini.values()) == sum(paper.values()) == len(claims)


def test_no_verdict_is_typed():
    "A verdict that stands alone in a tuple would stay when the numbers change"
    source = "\n".join(c.source for c in code("paper/08_claims"))
    assert not re.findall(r'\(\s*"(?:not tested|not printed|as printed|supported|contradicted)[^"]*",', source)


def test_the_ledger_has_the_verdicts_of_the_tables(claims):
    "Holm over the tasks of a pair, in the ledger as in every table"
    [text] = [shown(c) for c in code("paper/08_claims") if 'f"- **{n}** {c.mini[1]}"' in c.source]
    [line] = [line for line in text.splitlines() if line.startswith("- **8** ")]
    pairs = [("macular_nots", "macular_nots_wo_task_adv"), ("macular", "macular_wo_task_adv")]
    effects = [c.effect for c in compared(study(), pairs).values()]
    assert [x.endswith("*") for x in re.findall(r"[+-]\d+\.\d\*?", line)] == [e.significant for e in effects]
    assert re.findall(r"[+-]\d+\.\d", line) == [f"{e.points:+.1f}" for e in effects]
