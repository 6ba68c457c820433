"""The ledger of the paper's claims and the pages that read records: each sentence and verdict follows from numbers."""

import re
from pathlib import Path

import nbformat
import pytest

from macular.results.compare import compared, study
from macular.results.records import from_lines
from macular.results.statistics import by_seed, select
from macular.results.tables import overview
from macular.results.timing import Target
from macular.store import read_json

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
    lines = [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
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


# the positive control


def control_gain(dictionary, langs):
    "CoSDA-ML − fine-tuning on XNLI, by seed, over some languages"
    records = from_lines(ROOT / "nbs" / "records" / "control.jsonl")
    where = {"task": "xnli", "world": "related", "backbone": "mini-xlmr"}
    switched = select(records, method="cosda_ml", dictionary=dictionary, **where)
    return by_seed(switched, langs) - by_seed(select(records, method="finetune", dictionary="own", **where), langs)


def test_the_controls_reading_follows_from_its_records():
    "In Swahili and Urdu nothing of the gain is left with a shuffled dictionary: it comes from the meaning of words"
    own, shuffled = (control_gain(name, ["sw", "ur"]) for name in ("own", "shuffled"))
    assert own.mean() > 5 and abs(shuffled.mean()) < 1 and (own - shuffled).min() > 5
    [text] = [shown(c) for c in code("paper/04_control") if "def share" in c.source]
    [line] = [line for line in text.splitlines() if "Swahili and Urdu" in line]
    said = f"{own.mean():.1f} points gained, {shuffled.mean():.1f} with the shuffled dictionary"
    assert said in line and line.endswith("100 % of the gain, come from the meaning of words.")
    prose = " ".join(c.source for c in cells("paper/04_control") if c.cell_type == "markdown")
    assert "does not come from" not in prose, "what the records say is computed from them"


def test_the_page_on_the_mini_world_promises_no_more_than_the_control_shows():
    page = (ROOT / "docs" / "explanations" / "9_mini_world.md").read_text("utf-8")
    [text] = [shown(c) for c in code("paper/04_control") if "expected = [" in c.source]
    assert [r[""] for r in rows(text) if r["expected"].startswith("within 1.5 points of zero")] == ["**no**"]
    assert "must vanish" not in page and "implementation is wrong" not in page and "Not everything is lost" in page


# cost and speed


def test_the_readme_tells_every_target_of_speed_that_is_not_met():
    readme = (ROOT / "README.md").read_text("utf-8")
    speed = readme[readme.index("## Speed") : readme.index("## The notebooks")]
    bench = read_json(ROOT / "nbs" / "records" / "bench.json")
    aims = [Target(**t) for found in bench.values() for t in found.get("targets", [])]
    missed = [aim.what for aim in aims if aim.met is False]
    measured = sum(aim.met is not None for aim in aims)
    assert f"{len(missed)} of {measured} targets are not met: {'; '.join(missed)}." in speed
    told = {row["what"]: row["met"] for row in rows(speed)}
    assert told == {aim.what: "yes" if aim.met else "**no**" for aim in aims if aim.met is not None}


def test_an_equal_cost_is_one_of_inference():
    "Averaging two runs costs what Macular's two encoders cost to classify, and less to train"
    pages = [*(ROOT / "docs" / "explanations").glob("*.md"), ROOT / "README.md"]
    texts = [path.read_text("utf-8") for path in pages]
    for path in (ROOT / "nbs").rglob("[!_.]*.ipynb"):
        texts += [c.source for c in nbformat.read(path, 4).cells]
    sentences = [s for text in texts for s in re.split(r"(?<=[.?!:])\s", text)]
    said = [s for s in sentences if re.search(r"(equal|same)\s+cost|costs? the same", s)]
    assert said and all("inference" in s for s in said), [s for s in said if "inference" not in s]
    doubled = study(method=["finetune_x2", "cosda_ml_x2", "macular"])
    cost = {row[0]: row[-3:] for row in overview(doubled).rows}
    assert {encoders for _, _, encoders in cost.values()} == {"2"}
    passes = {name: int(forwards.replace(",", "")) for name, (_, forwards, _) in cost.items()}
    [text] = [shown(c) for c in code("paper/01_table2") if c.source.startswith("passes = ")]
    times = f"{passes['Macular'] / passes['CoSDA-ML ×2']:.1f} times those of CoSDA-ML ×2"
    assert times in text and passes["Macular"] > 3 * passes["CoSDA-ML ×2"]


# the tour


def test_the_tour_says_of_the_game_what_its_numbers_say():
    "A sentence below each figure, made from the last round; no text beside it that claims another end"
    views = [str(c.outputs) for c in code("start") if c.source == "live(full.folder)"]
    told = re.findall(r"tells which task[^.]*?in (\d+) % of the cases, ([^.]*)\.", views[0])
    told += re.findall(r"tells whether a text[^.]*?in (\d+) % of the cases, ([^.]*)\.", views[0])
    assert len(told) == 2, "of each stage's discriminator"
    for accuracy, end in told:
        near = int(accuracy) < 56  # two tasks, two languages: guessing gives 50
        assert (end == "no better than guessing") == near
    prose = " ".join(c.source for c in cells("start") if c.cell_type == "markdown")
    assert "only if the discriminator is no better than guessing" in prose and "tasks fall" not in prose
