"""The paper's numbers: complete, sourced, averaged over what they average."""
from dataclasses import FrozenInstanceError

import pytest

from macular.core import DataError, ParameterError
from macular.results import average, paper, published, read_averages, read_blocks, recomputed, sources

LANGS = {"xnli": "en ar bg de el es fr hi ru sw th tr ur vi zh", "pawsx": "en de es fr zh ja ko", "qam": "en de fr", "qadsm": "en de fr"}
CELLS = [c for name, cells in paper.items() if name != "table1" for c in cells]


@pytest.mark.parametrize("task", LANGS)
@pytest.mark.parametrize("method", ["finetune", "prompt", "rs_da", "syn", "cosda_ml", "macular_nots", "macular"])
def test_table2_has_every_language(method, task):
    missing = {"sw", "th"} if (method, task) == ("syn", "xnli") else set()
    assert set(published(method, task)) == set(LANGS[task].split()) - missing | {"avg"}


def test_cells_are_unique_percentages_with_a_known_source():
    keys = [(c.table, c.method, c.task, c.backbone, c.lang) for c in CELLS]
    assert len(set(keys)) == len(keys) == 222 + 8 + 16 + 48 + 12
    assert all(40 < c.accuracy < 100 for c in CELLS) and {c.source for c in CELLS} == set(sources)


def test_copied_rows_are_marked():
    copied = {(c.table, c.method, c.task): c.source for c in CELLS if c.source != "own"}
    assert {k[1] for k in copied} == {"finetune", "rs_da", "syn"}
    assert copied["table2", "finetune", "qam"] == "xglue" and copied["table2", "finetune", "xnli"] == "xtreme"
    assert copied["table5", "finetune", "xnli"] == "dong" and copied["table6", "finetune", "qam"] == "xglue"


def test_some_cells_by_hand():
    assert published("macular", "xnli")["sw"] == 51.3 and published("cosda_ml", "pawsx")["ko"] == 79.7
    assert published("macular", "xnli", "xlmr")["avg"] == 76.2 and published("finetune", "qam", "xlmr")["de"] == 68.1
    assert published("macular_wo_consistency", "xnli") == {"avg": 68.3} and published("macular_nots_wo_qam", "pawsx") == {"avg": 86.3}
    assert published("nobody", "xnli") == {}


def test_seven_printed_averages_are_off_and_one_beyond_rounding():
    off = [row for row in recomputed(paper["table2"] + paper["table5"] + paper["table6"]) if row["off"]]
    assert [(r["task"], r["method"]) for r in off if not r["rounding"]] == [("xnli", "finetune")]
    assert len(off) == 7


def test_an_average_never_leaves_a_language_out():
    syn = published("syn", "xnli")
    assert round(average(syn), 1) == 68.5
    assert round(average(published("macular", "xnli"), [k for k in syn if k != "avg"]), 2) == 71.35
    with pytest.raises(DataError, match="sw, th"): average(syn, LANGS["xnli"].split())
    with pytest.raises(DataError, match="0 languages"): average({"avg": 1.0})
    with pytest.raises(DataError, match="0 languages"): average(syn, [])


@pytest.mark.parametrize("text, error, said", [
    ("t qam mbert en de\nsyn code 1", DataError, "1 cells under 2 columns"), ("t qam mbert en\nsyn rumour 1", ParameterError, "rumour"),
    ("t qam mbert en\nsyn code x", ValueError, "x")])
def test_a_bad_table_is_refused(text, error, said):
    with pytest.raises(error, match=said): read_blocks(text)


def test_a_short_line_of_averages_is_refused():
    with pytest.raises(ValueError): read_averages("qam xnli\nmacular 66.9", "table3")


def test_cells_cannot_be_changed():
    with pytest.raises(FrozenInstanceError): paper["table2"][0].accuracy = 100.0
