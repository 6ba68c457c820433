"""Tasks and readers: real files, official layouts, a user's own files, and what must be refused."""

import gzip
import json
from dataclasses import replace

import pytest
from conftest import ROOT

from macular.data.readers import read_columns, read_examples
from macular.data.sources import File, Folder, Hub, Layout
from macular.data.tasks import Task, facts, find, load, not_read, tasks
from macular.exceptions import DataError, ParameterError, odd_languages

DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real files in ../shared/data are not here")
PAIR = Task("pair", labels=("no", "yes"), langs=("en", "de"))
LAYOUT = Layout("{split}.{lang}.tsv", text_a="a", text_b="b", labels={"0": "no", "1": "yes"})
HEAD = "a\tb\tlabel\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path, text, name="train.en.tsv", layout=LAYOUT, labels=PAIR.labels):
    return read_examples([write(tmp_path / name, text)], layout, labels)


def limits(error):
    "A message a person can read: short, and without characters that cannot be seen"
    text = str(error.value)
    return len(text) <= 1000 and text.count("\n") < 12 and text.replace("\n", "").isprintable()


# what the texts hold is kept


@pytest.mark.parametrize(
    "text",
    [
        "NA",
        "null",
        "None",
        "nan",
        "",
        "1.0",
        "2008-12-31",
        "true",
        '"',
        '"opens',
        'closes"',
        '""',
        "'",
        "\\N",
        "\\",
        "#c",
        "=1+1",
        " blank at both ends ",
        "line\u2028separator",
        "para\u2029graph",
        "next\x85line",
        "vertical\x0btab",
        "form\x0cfeed",
        "file\x1cseparator",
        "nul\x00inside",
        "\ufeff",
        "זה עברית",
        "\u202eoverride",
        "👩‍👩‍👧",
        "e" + "\u0301" * 5000,
        "<script>alert(1)</script>",
        "[SEP] [MASK] <s>",
        "x" * 1_000_000,
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_stays_as_it_is(tmp_path, text, end):
    rows = read(
        tmp_path, f"a\tb\tlabel{end}{text}\tother\t1{end}plain\t{text}\t0{end}", layout=replace(LAYOUT, published=True)
    )
    assert (
        rows["text_a"] == [text, "plain"]
        and rows["text_b"] == ["other", text]
        and rows["label"] == [1, 0]
        and rows["id"] == ["0", "1"]
    )


def test_a_file_of_quotes_loses_no_row(tmp_path):
    rows = read(tmp_path, HEAD + "".join(f'"text {i}\tsaid {i}"\t{i % 2}\n' for i in range(13)))
    assert len(rows) == 13 and rows["text_a"][12] == '"text 12'


@pytest.mark.parametrize(
    "data",
    [
        HEAD + "x\ty\t1",
        "\ufeff" + HEAD + "x\ty\t1\n",
        (HEAD + "x\ty\t1\n").replace("\n", "\r\n"),
        (HEAD + "x\ty\t1\n").replace("\n", "\r"),
    ],
    ids=["no last line end", "byte-order mark", "CRLF", "CR only"],
)
def test_line_ends_and_marks(tmp_path, data):
    assert read(tmp_path, data).to_dict() == {"id": ["0"], "text_a": ["x"], "text_b": ["y"], "label": [1]}


def test_every_format_reads_the_same(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    rows = [{"a": 'say "x", then', "b": "2008-12-31", "label": 1}, {"a": "NA", "b": "null", "label": 0}]
    tsv = HEAD + "".join(f"{r['a']}\t{r['b']}\t{r['label']}\n" for r in rows)
    written = [
        write(tmp_path / "x.tsv", tsv),
        write(tmp_path / "x.dev", tsv),
        write(tmp_path / "x.tsv.gz", gzip.compress(tsv.encode())),
        write(tmp_path / "x.csv", 'a,b,label\n"say ""x"", then",2008-12-31,1\nNA,null,0\n'),
        write(tmp_path / "x.jsonl", "".join(json.dumps(r) + "\n" for r in rows)),
        tmp_path / "x.parquet",
        tmp_path / "named.parquet",
    ]
    Dataset.from_list(rows).to_parquet(written[-2])
    flipped = Features(
        a=Value("string"), b=Value("string"), label=ClassLabel(names=["yes", "no"])
    )  # another order of the same names
    Dataset.from_list([r | {"label": 1 - r["label"]} for r in rows], features=flipped).to_parquet(written[-1])
    layout = replace(LAYOUT, labels=LAYOUT.labels | {"no": "no", "yes": "yes"})
    assert len({json.dumps(read_examples([path], layout, PAIR.labels).to_dict()) for path in written}) == 1


def test_quoted_line_breaks_in_csv(tmp_path):
    assert read(tmp_path, 'a,b,label\n"two\nlines","x, y",1\n', "x.csv").to_dict()["text_a"] == ["two\nlines"]


# what is refused, with the place

BAD = [
    ("text column missing", "x\tb\tlabel\n1\t2\t1\n", DataError, "unknown column 'a'"),
    ("label column missing", "a\tb\tlable\n1\t2\t1\n", DataError, "unknown column 'label'. Did you mean 'lable'?"),
    ("column twice", "a\tb\ta\tlabel\n1\t2\t3\t1\n", DataError, "two columns are called 'a'"),
    ("capitals in a column", "A\tb\tlabel\n1\t2\t1\n", DataError, "There is: A, b, label"),
    (
        "unknown label",
        HEAD + "x\ty\t1\nx\ty\tyess\n",
        DataError,
        "1 of 2 rows have an unknown label in column 'label'. First: line 3: 'yess'",
    ),
    ("label out of range", HEAD + "x\ty\t3\n", DataError, "line 2: '3'"),
    ("hidden label", HEAD + "x\ty\t-1\nx\ty\t-1\n", DataError, "Is this a test set whose labels are hidden?"),
    ("ignored label", HEAD + "x\ty\t-100\n", DataError, "line 2: '-100'"),
    ("no label", HEAD + "x\ty\t1\nx\ty\t\n", DataError, "line 3: ''"),
    ("True and False", HEAD + "x\ty\tTrue\n", DataError, "Spellings are stated in the layout's `labels`"),
    ("blank after a label", HEAD + "x\ty\t1 \n", DataError, "line 2: '1 '"),
    ("empty text", HEAD + "x\ty\t1\n\ty\t1\n", DataError, "1 of 2 rows have an empty text in a. First: line 3"),
    ("blanks only", HEAD + "x\t \u3000\t1\n", DataError, "an empty text in b"),
    ("zero rows", HEAD, DataError, "no rows"),
    ("zero bytes", "", DataError, "is empty"),
    ("blank line", HEAD + "x\ty\t1\n\nx\ty\t0\n", DataError, "line 3"),
    ("cells too many", HEAD + "x\ty\t1\nx\ty\tz\t1\n", DataError, "First: line 3 has 4"),
    ("cells too few", HEAD + "x\ty\t1\nx\t1\n", DataError, "First: line 3 has 2"),
    ("commas in a .tsv", "a,b,label\nx,y,1\n", DataError, "There is: a,b,label"),
    ("Latin-1", HEAD.encode() + b"caf\xe9\ty\t1\n", DataError, "line 2: byte 13 is not UTF-8"),
    ("UTF-16", (HEAD + "x\ty\t1\n").encode("utf-16"), DataError, "is UTF-16"),
    ("CR inside a row", HEAD + "x\ty\t1\nx\rz\ty\t1\n", DataError, "line 3: a carriage return inside a row"),
    ("unseen characters are escaped", HEAD + "x\ty\t\u202e\x1b[31m" + "z" * 5000 + "\n", DataError, "\\u202e"),
]


@pytest.mark.parametrize("data, error, message", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_table_is_refused(tmp_path, data, error, message):
    with pytest.raises(error) as raised:
        read(tmp_path, data)
    assert message in str(raised.value) and limits(raised)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"a": "x", "b": "y", "label": 1,}', "line 2: not a JSON object"),
        ("[1, 2]", "line 2: not a JSON object"),
        ("[" * 10_000, "line 2: not a JSON object"),
        ("", "line 2: not a JSON object"),
        ('{"a": "\\ud800", "b": "y", "label": 1}', "line 2: not a JSON object of proper text"),
        ('{"a": 5, "b": "y", "label": 1}', "1 of 2 rows have no text in column 'a'. First: line 2: '5'"),
        ('{"a": null, "b": "y", "label": 1}', "line 2: 'None'"),
        ('{"a": NaN, "b": "y", "label": 1}', "line 2: 'nan'"),
        ('{"a": "x", "b": "y"}', "line 2: 'None'"),
        ('{"a": "x", "b": "y", "label": 1.0}', "line 2: '1.0'"),
        ('{"a": "x", "b": "y", "label": true}', "line 2: 'True'"),
    ],
)
def test_a_bad_json_line_is_refused(tmp_path, line, message):
    with pytest.raises(DataError) as raised:
        read(tmp_path, '{"a": "x", "b": "y", "label": 1}\n' + line + "\n", "x.jsonl")
    assert message in str(raised.value) and limits(raised)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("x.tsv.gz", gzip.compress((HEAD + "x\ty\t1\n" * 999).encode(), mtime=0)[:-20], "cannot be read"),
        ("x.tsv.gz", b"no gzip at all", "cannot be read"),
        ("x.tsv.gz", gzip.compress(b"\0" * 10_000_000, mtime=0), "more than 100 times"),
        ("x.parquet", b"PAR1 not really PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, data, name)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_columns(tmp_path, ["a"])
    with pytest.raises(DataError, match="is not there"):
        read_columns(tmp_path / "none.tsv", ["a"])


# malformed quoting


@pytest.mark.parametrize(
    "text, place, words",
    [
        ('a,b,label\nx,y,1\n"open,y,1\nx,y,0\n', "line 3", "a quote is opened that is never closed"),
        ('a,b,label\n"open,y,1\n"x",y,0\n', "line 2", "text follows a closing quote, on line 3"),
        ('a,b,label\nx,y,1\n"rain" fell,y,1\n', "line 3", "text follows a closing quote"),
        ('a,b,label\n"two\nlines",y,1\n"rain"s,y,1\n', "line 4", "text follows a closing quote"),
        ('a,b,label\n"say \\"hi\\" now",y,1\n', "line 2", "a backslash stands before a quote"),
        ('a,b,label\nx,y,1\nsay \\"hi\\",y,1\n', "line 3", "a backslash stands before a quote"),
        ('a,b,label\n\\"hi\\" there,y,1\n', "line 2", "a backslash stands before a quote"),
        ('a,b,label\nx,y,1\n"x", "y",1\n', "line 3", "a blank stands before a quote"),
        ("a,b,label\nx,y,1\nx\\, z,y,1\n", "line 3 has 4", "is the separator escaped by a backslash?"),
        ('a,b,label\n"one\ntwo\nthree",y,1\nx,y,2\n', "line 5: '2'", "unknown label"),
        ('a,b,label\n"one\ntwo",y,1\nx,1\n', "line 4 has 2", "do not have the 3 cells"),
    ],
)
def test_malformed_quotes_in_csv_are_refused_with_their_line(tmp_path, text, place, words):
    with pytest.raises(DataError) as raised:
        read(tmp_path, text, "train.en.csv")
    assert place in str(raised.value) and words in str(raised.value) and limits(raised)


def test_another_separator_is_named_before_its_quotes(tmp_path):
    text = 'a;b;label\n"x, y";"say ""z""";1\n'
    with pytest.raises(DataError, match='separator = ";"'):
        read(tmp_path, text, "x.csv")
    assert read(tmp_path, text, "x.csv", replace(LAYOUT, separator=";"))["text_b"][:] == ['say "z"']


def test_quotes_that_are_in_order(tmp_path):
    text = 'a,b,label\n5" disk,"a ""b"" c",1\n"C:\\dir\\","ends \\""x""",0\n"",""" ",1\n'
    rows = read(tmp_path, text, "x.csv", layout=replace(LAYOUT, published=True))
    assert rows["text_a"][:] == ['5" disk', "C:\\dir\\", ""] and rows["text_b"][:] == ['a "b" c', 'ends \\"x"', '" ']
    large = "a,b,label\n" + "x" * 300_000 + ",y,1\n"
    assert len(read(tmp_path, large, "large.csv")[0]["text_a"]) == 300_000


@pytest.mark.parametrize(
    "text",
    [
        HEAD + 'x\t"say ""y"", then"\t1\nx\ty\t0\n',  # pandas
        HEAD + '"x"\t"y"\t"1"\n"z"\t"y"\t"0"\n',  # all cells
        '"a"\t"b"\t"label"\n"x"\t"y"\t"1"\n"z"\t"y"\t"0"\n',  # R, with the header
        HEAD + 'x\t"two\nlines"\t1\nx\ty\t0\n',  # a line break in a cell
    ],
    ids=["pandas", "all cells", "header", "line break"],
)
def test_a_tab_separated_file_with_csv_quotes_is_recognised(tmp_path, text):
    with pytest.raises(DataError, match="say quoted = true below") as raised:
        read(tmp_path, text)
    assert limits(raised)
    assert read(tmp_path, text, layout=replace(LAYOUT, quoted=True))["label"][:] == [1, 0]
    assert read(tmp_path, text, "x.csv", layout=replace(LAYOUT, separator="\t"))["label"][:] == [1, 0]


def test_quotes_of_the_texts_stay(tmp_path):
    text = HEAD + '"x"\ty\t1\n"x" or y\t"say ""z"""\t0\n'
    kept = ['"x"', '"x" or y']
    assert read(tmp_path, text, layout=replace(LAYOUT, quoted=False))["text_a"][:] == kept
    assert read(tmp_path, text, layout=replace(LAYOUT, published=True))["text_a"][:] == kept
    assert read(tmp_path, HEAD + '"x"\ty\t1\n"x" or y\tz\t0\n')["text_a"][:] == kept


@real
def test_the_published_topics_are_tab_separated_with_csv_quotes():
    rows = load("sib200", "train", source=Folder(str(DATA)))
    text = rows["text_a"][rows["id"][:].index("1239")]
    assert text.startswith("\"She’s very cute and sings quite well, too,\" he said according")
    assert not any('""' in text for text in rows["text_a"])


# Parquet


def test_other_columns_of_a_parquet_file_do_not_matter(tmp_path):
    import uuid

    import pyarrow as pa
    import pyarrow.parquet as pq

    good = {"a": ["x", "z"], "b": ["y", "y"], "label": ["1", "0"]}
    others = {
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.uuid4().bytes] * 2, pa.binary(16))),
        "list": pa.array([["t"], []]),
        "struct": pa.array([{"a": 1}, {"a": 2}]),
        "null": pa.nulls(2),
        "decimal": pa.array([1, 2], pa.decimal128(5)),
    }
    newer = {"info": {"features": {"list": {"_type": "SomethingNewer"}, "a": 3, "label": {"_type": "ClassLabel"}}}}
    tables = [pa.table(good | {name: column}) for name, column in others.items()]
    tables.append(pa.table(good).replace_schema_metadata({"huggingface": json.dumps(newer)}))
    tables.append(pa.table(good).replace_schema_metadata({"huggingface": "no JSON"}))
    tables.append(pa.table([*map(pa.array, good.values()), pa.array([1, 2]), pa.array([3, 4])], [*good, "c", "c"]))
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
        rows = read_examples([tmp_path / f"{i}.parquet"], LAYOUT, PAIR.labels)
        assert rows["text_a"][:] == ["x", "z"] and rows["label"][:] == [1, 0]
    twice = pa.table([*map(pa.array, good.values()), pa.array(["1", "0"])], ["a", "b", "label", "label"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="two columns are called 'label', which is columns 3 and 4"):
        read_examples([tmp_path / "twice.parquet"], LAYOUT, PAIR.labels)


# nulls, labels that are left out, Unicode


def test_a_null_beside_another_column_is_empty(tmp_path):
    rows = [{"a": "x", "t": "title", "b": None, "label": "1"}, {"a": "x", "t": None, "b": "body", "label": "0"}]
    layout = replace(LAYOUT, text_b=("t", "b"))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(tmp_path, text, "x.jsonl", layout)["text_b"][:] == ["title ", " body"]
    rows.append({"a": "x", "t": None, "b": None, "label": "1"})
    with pytest.raises(DataError, match="1 of 3 rows have an empty text in t, b. First: line 3"):
        read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "y.jsonl", layout)


def test_labels_that_are_left_out_are_counted(tmp_path):
    write(tmp_path / "train.en.tsv", HEAD + "x\ty\t1\nx\ty\t-\nz\ty\t0\nx\ty\t-\n")
    source = replace(File("{split}.{lang}.tsv", "a", "b", labels=LAYOUT.labels), folder=str(tmp_path))
    with pytest.raises(DataError, match=r'To leave such rows out, below \[source\]: left_out = \["-"\]'):
        source.read(PAIR, "train", "en")
    task = replace(PAIR, source=replace(source, left_out="-"))
    rows = load(task, "train")
    assert rows["text_a"][:] == ["x", "z"] and rows["id"][:] == ["0", "2"]  # numbers of the file's rows
    assert not_read(task, "train") == ["train.en.tsv: 2 rows are left out, whose label is '-' (2)"]
    with pytest.raises(DataError, match="only rows that `left_out` leaves out"):
        load(replace(PAIR, source=replace(source, left_out=["-", "1", "0"])), "train")


def test_labels_are_compared_in_composed_form(tmp_path):
    apart, composed = "cafe\u0301", "caf\u00e9"
    layout = replace(LAYOUT, labels={composed: "no", "1": "th\u00e9"})
    rows = read(tmp_path, HEAD + f"x\ty\t{apart}\nx\ty\t1\n", layout=layout, labels=("no", "the\u0301"))
    assert rows["label"][:] == [0, 1]


# languages that are not read

LOCALES = "lang\t" + HEAD


@pytest.mark.parametrize(
    "value, meant",
    [
        ("en-US", "en"),
        ("en_GB", "en"),
        ("EN", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("English", "en"),
        ("german", "de"),
        ("Deutsch", "de"),
        ("de_DE.UTF-8", "de"),
        ("German (Austria)", "de"),
        ("", None),
        ("fr", None),
        (" de ", "de"),
        ("pt_br", "pt-BR"),
        ("portuguese", "pt-BR"),
    ],
)
def test_the_nearest_language_is_named(value, meant):
    said = odd_languages(["en", value, value], ("en", "de", "pt-BR"))
    assert said.startswith(repr(value)) and "2 rows" in said
    assert (f"did you mean '{meant}'?" in said) if meant else ("did you mean" not in said)


def test_rows_of_other_languages_are_counted(tmp_path):
    text = LOCALES + "en\tx\ty\t1\nen\tx\ty\t0\nen-US\tx\ty\t1\n\tx\ty\t1\nde\tx\ty\t1\n"
    for split in ("train", "test"):
        write(tmp_path / f"{split}.tsv", text)
    source = File("{split}.tsv", "a", "b", lang="lang", labels=LAYOUT.labels, folder=str(tmp_path))
    task = replace(PAIR, source=source)
    (train,), (test,) = not_read(task, "train"), not_read(task, "test")
    assert len(load(task, "train")) == 2 and task.source.langs(task, "test") == ("en", "de")
    assert train.startswith("train.tsv: 3 of 5 rows are not read; their lang is") and "'de' (1 row)" in train
    assert "2 of 5 rows" in test and "'en-US' (1 row; did you mean 'en'?)" in test and "'' (1 row)" in test
    write(tmp_path / "train.tsv", text.replace("en\t", "en_US\t"))
    with pytest.raises(DataError, match="no rows whose lang is 'en'; it holds 'en_US' .2 rows; did you mean 'en'"):
        load(task, "train")


def test_files_of_other_languages_are_named(tmp_path):
    for name in ("train.en", "train.de", "test.en", "test.de_DE", "test.fr"):
        write(tmp_path / f"{name}.tsv", HEAD + "x\ty\t1\nz\ty\t0\n")
    source = File("{split}.{lang}.tsv", "a", "b", labels=LAYOUT.labels, folder=str(tmp_path))
    task = replace(PAIR, source=source)
    assert not_read(task, "train") == []  # translations of the training examples are never read
    (test,) = not_read(task, "test")
    assert "'de_DE' (1 file; did you mean 'de'?), 'fr' (1 file)" in test
    absolute = replace(source, files=str(tmp_path / "{split}.{lang}.tsv"), folder="elsewhere [1]")
    assert "'de_DE'" in not_read(replace(task, source=absolute), "test")[0]
    write(tmp_path / "de-AT" / "test.de-AT.tsv", HEAD)
    nested = replace(source, files="{lang}/{split}.{lang}.tsv")
    assert "'de-AT' (1 file; did you mean 'de'?)" in not_read(replace(task, source=nested), "test")[0]
    write(tmp_path / "train.en.tsv", "").rename(tmp_path / "train.en_US.tsv")
    assert "'en_US' (1 file; did you mean 'en'?)" in not_read(task, "train")[0]


# examples held out for dev


@pytest.mark.parametrize("first", [1, 2, 3, 200])
def test_held_out_with_few_first_texts(tmp_path, first):
    write(
        tmp_path / "train.en.tsv",
        HEAD + "".join(f"classify {i % first}\tsentence {i}\t{i % 2}\n" for i in range(200)),
    )
    source = File("{split}.{lang}.tsv", "a", "b", labels=LAYOUT.labels, folder=str(tmp_path), held_out=0.1)
    task = replace(PAIR, source=source)
    train, dev = load(task, "train"), load(task, "dev")
    assert 8 <= len(dev) <= 40 and len(train) + len(dev) == 200 and not set(train["text_b"]) & set(dev["text_b"])


# the official archives


def archive(folder):
    "A few rows of all four archives, in their published formats"
    write(
        folder / "XNLI-MT-1.0/multinli/multinli.train.en.tsv",
        "premise\thypo\tlabel\np\th\tcontradictory\np\th\tentailment\np\th\tneutral\n",
    )
    write(folder / "XNLI-MT-1.0/multinli/multinli.train.de.tsv", "premise\thypo\tlabel\nübersetzt\th\tneutral\n")
    head = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tpairID\n"
    write(
        folder / "XNLI-1.0/xnli.dev.tsv",
        head
        + "".join(
            f"{lang}\t{label}\t( ( \t{lang} 1 {i}\t{lang} 2\t{i}\t{i + 100}\n"
            for lang in ("ar", "en", "zh")
            for i, label in enumerate(("neutral", "contradiction", "entailment"))
        ),
    )
    pawsx = "id\tsentence1\tsentence2\tlabel\n"
    write(folder / "x-final/en/train.tsv", pawsx + "7\tone\ttwo\t1\n8\tone\tthree\t0\n")
    write(folder / "x-final/de/translated_train.tsv", pawsx + "7\teins\tzwei\t1\n")
    write(folder / "x-final/de/test_2k.tsv", pawsx + "7\teins\tNS\t1\n8\teins\t\t0\n")
    write(folder / "xglue_full_dataset/QAM/xglue.qam.fr.test", 'où ?\t"ici\t1\nqui ?\tlui\t0\n')
    write(
        folder / "xglue_full_dataset/QADSM/xglue.qadsm.en.train", "sofa\tSofas\tcheap ones\tGood\nsofa\tCars\t\tBad\n"
    )
    return Folder(str(folder))


def test_the_official_archives(tmp_path):
    source = archive(tmp_path)
    train = load("xnli", "train", source=source)
    assert [train.features["label"].int2str(x) for x in train["label"]] == ["contradiction", "entailment", "neutral"]
    dev = load("xnli", "dev", "zh", source)
    assert (
        dev["text_a"] == ["zh 1 0", "zh 1 1", "zh 1 2"]
        and dev["id"] == ["100", "101", "102"] == load("xnli", "dev", "ar", source)["id"]
    )
    assert [dev.features["label"].int2str(x) for x in dev["label"]] == ["neutral", "contradiction", "entailment"]
    assert source.langs(tasks["xnli"], "dev") == ("en", "ar", "zh") and source.langs(tasks["xnli"], "test") == ()
    assert load("pawsx", "train", source=source)["id"] == ["7", "8"]
    counted = facts(load("pawsx", "test", "de", source), load("pawsx", "train", source=source), published=2000)
    assert (counted["untranslated"], counted["empty"], counted["in training"], counted["of"]) == (
        1,
        1,
        0,
        "sample: 2 of 2,000 rows",
    )
    assert load("qam", "test", "fr", source).to_dict()["text_b"] == ['"ici', "lui"]
    ads = load("qadsm", "train", source=source)
    assert (
        ads["text_b"] == ["Sofas cheap ones", "Cars "]
        and ads.features["label"].names == ["Bad", "Good"]
        and ads["label"] == [1, 0]
    )


@pytest.mark.parametrize("task, lang", [("xnli", "de"), ("pawsx", "de")])
def test_machine_translated_training_rows_are_refused(tmp_path, task, lang):
    source = archive(tmp_path)
    with pytest.raises(ParameterError, match="machine translations"):
        load(task, "train", lang, source)
    with pytest.raises(DataError, match="zero-shot"):
        load(replace(tasks[task], source_lang=lang), "train", source=source)
    assert source.langs(replace(tasks[task], source_lang=lang), "train") == ()


def test_a_missing_file_says_what_is_there(tmp_path):
    with pytest.raises(DataError) as raised:
        load("xnli", "test", "sw", archive(tmp_path))
    assert (
        "xnli.test.tsv" in str(raised.value)
        and "train in en; dev in en, ar, zh" in str(raised.value)
        and "macular data check" in str(raised.value)
    )


def test_packed_files_are_found(tmp_path):
    source, plain = archive(tmp_path), tmp_path / "x-final/en/train.tsv"
    before = load("pawsx", "train", source=source).to_dict()
    write(plain.with_name("train.tsv.gz"), gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert (
        load("pawsx", "train", source=source).to_dict() == before
        and source.provenance(tasks["pawsx"], "train", "en")[0]["file"] == "x-final/en/train.tsv.gz"
    )


def test_a_file_that_is_not_the_published_one(tmp_path):
    rows = [
        f"{lang}\t{label}\t\ta {i}\tb\t0\t{i}\n"
        for lang in ("en",)
        for i, label in enumerate(["neutral"] * 1000 + ["entailment"] * 745 + ["contradiction"] * 745)
    ]
    head = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tpairID\n"
    write(tmp_path / "XNLI-1.0/xnli.dev.tsv", head + "".join(rows))
    with pytest.raises(DataError, match="it is another file"):
        load("xnli", "dev", source=Folder(str(tmp_path)))
    write(tmp_path / "XNLI-1.0/xnli.dev.tsv", head + "".join(rows) + "en\tneutral\t\tone\tmore\t0\tx\n")
    with pytest.raises(DataError, match="2,491 rows where 2,490 were published"):
        load("xnli", "dev", source=Folder(str(tmp_path)))


def test_provenance_names_files_but_no_place(tmp_path):
    rows = archive(tmp_path).provenance(tasks["xnli"], "train", "en") + archive(tmp_path).provenance(
        tasks["xnli"], "dev", "ar"
    )
    assert [row["file"] for row in rows] == ["XNLI-MT-1.0/multinli/multinli.train.en.tsv", "XNLI-1.0/xnli.dev.tsv"]
    assert (
        [row["noncommercial"] for row in rows] == [False, True]
        and str(tmp_path) not in json.dumps(rows)
        and len(rows[0]["sha256"]) == 64
    )


# what a split must be


def test_a_training_set_without_a_label_is_refused(tmp_path):
    own = File("{split}.{lang}.tsv", "a", "b", labels=LAYOUT.labels, folder=str(tmp_path))
    three = replace(PAIR, labels=("no", "yes", "maybe"))
    write(tmp_path / "train.en.tsv", HEAD + "x\ty\t1\nx\tz\t0\n")
    write(tmp_path / "test.de.tsv", HEAD + "x\ty\t1\nx\tz\t1\n")
    with pytest.raises(DataError, match="none with label maybe"):
        load(three, "train", source=own)
    with pytest.raises(DataError, match="none with label no"):
        load(PAIR, "test", "de", own)
    with pytest.raises(ParameterError, match="unknown label name 'yes'"):
        load(replace(PAIR, labels=("no", "good")), "train", source=own)


@pytest.mark.parametrize(
    "task, split, lang, message",
    [
        ("xnlii", "dev", "en", "unknown task 'xnlii'. Did you mean 'xnli'?"),
        ("xnli", "valid", "en", "unknown split 'valid'"),
        ("pawsx", "dev", "sw", "unknown language of pawsx 'sw'"),
    ],
)
def test_unknown_names(task, split, lang, message):
    with pytest.raises(ParameterError) as raised:
        load(task, split, lang, Hub())
    assert message in str(raised.value)


def test_a_source_that_does_not_hold_the_task(tmp_path):
    with pytest.raises(ParameterError, match="an archive folder does not hold this task"):
        load(PAIR, "train", source=Folder(str(tmp_path)))
    assert Folder(str(tmp_path)).langs(PAIR, "train") == Hub().langs(PAIR, "train") == ()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name="../x"), "task name"),
        (dict(labels=("one",)), "labels must be"),
        (dict(labels=("a", "a")), "labels must be"),
        (dict(langs=()), "langs must be"),
        (dict(fields=("a", "b", "c")), "two texts"),
        (dict(max_length="128"), "max_length"),
        (dict(max_length=True), "max_length"),
    ],
)
def test_a_task_that_makes_no_sense(change, message):
    with pytest.raises(ParameterError, match=message):
        replace(PAIR, **change)


def test_facts_count_what_is_odd(tmp_path):
    rows = read(tmp_path, HEAD + "x\ty\t1\nx\ty\t0\nx\ty\t0\nNS\tz\t1\nu\tv\t1\n")
    counted = facts(rows, train=rows.select([4]))
    assert counted == dict(
        rows=5, labels={"no": 2, "yes": 3}, majority=0.6, empty=0, untranslated=1, repeated=2, contradictory=1
    ) | {"in training": 1}


@pytest.mark.parametrize(
    "given, ids",
    [
        ("1 1 1", "1 1.2 1.3"),
        ("1.2 1 1", "1.2 1 1.3"),
        ("1 1 1.2", "1 1.3 1.2"),
        ("1 1 1.2 1.2", "1 1.3 1.2 1.2.2"),
        ("a a.3 a a", "a a.3 a.2 a.4"),
    ],
)
def test_an_id_that_comes_again_gets_a_number_that_is_free(tmp_path, given, ids):
    text = "id\t" + HEAD + "".join(f"{x}\tx\ty\t1\n" for x in given.split())
    assert read(tmp_path, text, layout=replace(LAYOUT, id="id"))["id"][:] == ids.split()


# a task as a file

TOML = """
name = "own"
labels = ["no", "yes"]
langs = ["de", "fr"]
source_lang = "de"
neighbour = ["qam"]

[source]
files = {train = "train.tsv", dev = "dev.{lang}.csv"}
text_a = "q"
text_b = ["p1", "p2"]
label = "y"
id = "key"
labels = {"0" = "no", "1" = "yes"}
licence = "CC0"
"""


def test_a_task_from_toml(tmp_path):
    write(tmp_path / "train.tsv", "key\tq\tp1\tp2\ty\nk1\tfrage\tlang\tund breit\t1\nk1\tf\tx\ty\t0\n")
    write(tmp_path / "dev.fr.csv", "key,q,p1,p2,y\n1,qui,moi,,1\n2,où,là,bas,0\n")
    task = find(write(tmp_path / "own.toml", TOML))
    assert (
        task.neighbour == ("qam",)
        and task.source.langs(task, "train") == ("de",)
        and task.source.langs(task, "dev") == ("fr",)
    )
    rows = load(str(tmp_path / "own.toml"), "train", source=Hub())  # its own files win
    assert rows.to_dict() == {
        "id": ["k1", "k1.2"],
        "text_a": ["frage", "f"],
        "text_b": ["lang und breit", "x y"],
        "label": [1, 0],
    }
    assert (
        load(task, "dev", "fr")["text_b"] == ["moi ", "là bas"]
        and task.source.provenance(task, "dev", "fr")[0]["licence"] == "CC0"
    )
    with pytest.raises(DataError, match="own has no test file"):
        load(task, "test", "fr")


@pytest.mark.parametrize(
    "old, new, error, message",
    [
        ("neighbour", "neigbour", ParameterError, "unknown field 'neigbour'. Did you mean 'neighbour'?"),
        ('name = "own"', "", ParameterError, "please say name"),
        ('text_a = "q"', "", ParameterError, "please say text_a"),
        ("text_b", "textb", ParameterError, "unknown field 'textb'. Did you mean 'text_b'?"),
        ("train =", "trian =", ParameterError, "unknown split 'trian'. Did you mean 'train'?"),
        ("name = ", "name ", DataError, "is not TOML"),
    ],
)
def test_a_task_file_with_a_mistake(tmp_path, old, new, error, message):
    with pytest.raises(error) as raised:
        find(write(tmp_path / "own.toml", TOML.replace(old, new)))
    assert message in str(raised.value) and limits(raised)


def test_a_task_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        find(tmp_path / "none.toml")


# the real files

COUNTS = {
    ("xnli", "train"): {"en": (10014, 9661, 9761)},
    ("xnli", "dev"): dict.fromkeys(tasks["xnli"].langs, (830, 830, 830)),
    ("pawsx", "train"): {"en": (4757, 3836)},
    ("pawsx", "dev"): {
        "en": (1137, 863),
        "de": (1169, 831),
        "es": (1153, 847),
        "fr": (1140, 860),
        "ja": (1146, 854),
        "ko": (1160, 840),
        "zh": (1147, 853),
    },
    ("qam", "dev"): {"de": (486, 514)},
    ("qadsm", "dev"): {"de": (514, 486)},
}
UNTRANSLATED = {"en": 0, "de": 68, "es": 38, "fr": 8, "ja": 20, "ko": 35, "zh": 16}


@real
@pytest.mark.slow
@pytest.mark.parametrize("name, split", COUNTS, ids=["-".join(key) for key in COUNTS])
def test_real_counts(name, split):
    source, task, ids = Folder(str(DATA)), tasks[name], set()
    assert set(source.langs(task, split)) == set(COUNTS[name, split])
    for lang, expected in COUNTS[name, split].items():
        rows = load(task, split, lang, source)
        counted = facts(rows)
        assert (
            tuple(counted["labels"].values()) == expected
            and counted["rows"] == sum(expected)
            and len(set(rows["id"])) == len(rows)
        )
        if name == "pawsx" and split == "dev":
            assert counted["untranslated"] == UNTRANSLATED[lang]
        ids.add(tuple(rows["id"]))
    assert len(ids) == 1  # the same items in all languages


@real
@pytest.mark.parametrize(
    "name, split, lang, texts, labels, expected",
    [
        ("qam", "train", "de", ("question", "passage"), {"0": "no", "1": "yes"}, (4514, 4486)),
        (
            "qadsm",
            "train",
            "de",
            ("query", ("ad_title", "ad_description")),
            {"Bad": "Bad", "Good": "Good"},
            (4486, 4514),
        ),
        ("qnli", "train", "en", ("question", "passage"), {"0": "no", "1": "yes"}, (4972, 5027)),
        ("qnli", "dev", "en", ("question", "passage"), {"0": "no", "1": "yes"}, (2761, 2702)),
    ],
)
def test_real_files_of_ones_own(name, split, lang, texts, labels, expected):
    source = File(f"{name}.{{split}}.{{lang}}.tsv", *texts, labels=labels, folder=str(DATA / "own"))
    task = Task(name, labels=tuple(labels.values()), langs=("de", "en"), source_lang=lang, source=source)
    assert tuple(facts(load(task, split))["labels"].values()) == expected and source.langs(task, "train") == (lang,)
