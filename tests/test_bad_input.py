"""Bad input: every case goes through a whole job, and is refused with its place, counted, or
accepted, before a model is loaded.

A row says what is changed in a small world that is in order, and what must come of it: `A` the job reaches its
model and has nothing to say, `W` it reaches its model and says these words, or the class of the error and what its
message must hold."""

import gzip
import json
import os
import stat
import time
from pathlib import Path
from unicodedata import normalize

import pytest

from macular.arguments import from_notebook
from macular.exceptions import DataError, MacularError, ParameterError, SetupError, shown
from macular.train.config import check

A, W = "accepted", "accepted, and said"
HEAD = "id\ta\tb\tlabel\n"
TOML = """name = "own"
labels = ["no", "yes"]
langs = ["en", "de"]

[source]
files = "{split}.{lang}.tsv"
text_a = "a"
text_b = "b"
id = "id"
labels = {"0" = "no", "1" = "yes"}
"""


class Loaded(BaseException):
    "A model was asked for: all that was to be judged has passed"


def table(*rows, n=8, head=HEAD, start=0):
    "A file in order, and these rows behind it"
    good = [f"{i}\tthe dog sees house {i}\tthe cat reads book {i}\t{i % 2}" for i in range(start, start + n)]
    return head + "\n".join([*good, *rows]) + "\n"


def spoken(lang, start=0):
    "The same with a column for the language"
    head, *rows = table(start=start).splitlines()
    return "\n".join([f"lang\t{head}", *(f"{lang}\t{row}" for row in rows)]) + "\n"


def dictionary(*lines):
    return (
        "\n".join(["the die", "the der", "dog Hund", "cat Katze", "house Haus", "book Buch", "sees sieht", *lines])
        + "\n"
    )


GOOD = {
    "train.en.tsv": table(),
    "dev.en.tsv": table(start=100),
    "test.en.tsv": table(start=200),
    "test.de.tsv": table(start=300),
    "words/en-de.txt": dictionary(),
    "own.toml": TOML,
}


def world(folder, changes):
    "The world with some of its files changed: a text, bytes, nothing, or what makes the thing at a path"
    for name, what in (GOOD | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(what):
            what(path)
        elif what is not None:
            path.write_bytes(what if isinstance(what, bytes) else what.encode())
    return folder


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    "Do a job of the world; (error or None, what was said)"
    import macular.train.build
    import macular.train.run

    def load(*a, **k):
        raise Loaded

    monkeypatch.setattr(macular.train.build, "load_encoder", load)

    def do(files, given):
        world(tmp_path, files)
        said = []

        def watch(event, facts):
            said.extend(facts["notes"] if event == "data" else ())

        usual = {
            "task": str(tmp_path / "own.toml"),
            "method": "cosda_ml",
            "preset": "mini",
            "backbone": "mini-bert",
            "batch_size": 4,
            "lexicon_dir": str(tmp_path / "words"),
            "out": str(tmp_path / "runs"),
        }
        try:
            macular.train.run.run(check(usual | given), watch)
        except Loaded:
            return None, said
        except MacularError as e:
            return e, said
        pytest.fail("neither refused nor trained")

    return do


def readable(text):
    return len(text) <= 1000 and text.count("\n") < 12 and text.replace("\n", "").isprintable()


def judge(outcome, files, given, expected, words):
    started = time.process_time()
    error, said = outcome(files, given)
    assert time.process_time() - started < 5, "judged within seconds"
    words = (words,) if isinstance(words, str) else words
    if isinstance(expected, str):
        assert error is None, f"{type(error).__name__}: {error}"
        text = "\n".join(said)
        assert (text != "") == (expected == W), text
    else:
        assert type(error) is expected, (error, said)
        text = str(error)
        assert readable(text), text
        assert str(error.__cause__) != "" or error.__cause__ is None
    assert [w for w in words if w not in text] == [], text


def folder(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(path)


def dangling(path):
    path.symlink_to("nowhere")


def parquet(rows, labels=None):
    def write(path):
        from datasets import ClassLabel, Dataset

        found = Dataset.from_list(rows)
        (found.cast_column("label", ClassLabel(names=labels)) if labels else found).to_parquet(path)

    return write


def toml(old, new):
    return {"own.toml": TOML.replace(old, new, 1)}


def train(text):
    return {"train.en.tsv": text}


def lines(*objects):
    return (
        toml("{lang}.tsv", "{lang}.jsonl")
        | {
            f"{s}.jsonl": "".join(
                f'{{"id": "{s}{i}", "a": "the dog", "b": "cat {s} {i}", "label": "{i % 2}"}}\n' for i in range(4)
            )
            for s in ("train.en", "dev.en", "test.en", "test.de")
        }
        | {
            "train.en.jsonl": "".join(
                x + "\n"
                for x in (
                    '{"id": "1", "a": "the dog", "b": "cat", "label": "1"}',
                    '{"id": "2", "a": "the dog", "b": "house", "label": "0"}',
                    *objects,
                )
            )
        }
    )


def columns(**changes):
    return toml("{lang}.tsv", "{lang}.parquet") | {
        f"{s}.parquet": parquet(
            [
                {"id": f"{s}{i}", "a": "the dog", "b": f"cat {s} {i}", "label": str(i % 2)}
                | (changes if s == "train.en" and i == 3 else {})
                for i in range(4)
            ]
        )
        for s in ("train.en", "dev.en", "test.en", "test.de")
    }


def other(kind, content):
    return {"own.toml": TOML.replace(".tsv", f".{kind}")} | {
        f"{x}.{kind}": content for x in ("train.en", "dev.en", "test.en", "test.de")
    }


def utf16(text):
    return text.encode("utf-16")


def odd(text):
    return train(table(f"8\t{text}\tthe house\t0"))


LONG = "the dog sees the house " * 45_000
DATA = [
    # columns
    (
        "text column missing",
        train(table(head="id\tx\tb\tlabel\n")),
        DataError,
        ("train.en.tsv", "unknown column 'a'", "There is: b, id, label, x"),
    ),
    (
        "several columns missing",
        train(table(head="id\tx\ty\tlabel\n")),
        DataError,
        ("unknown column 'a'", "Also missing: b"),
    ),
    (
        "label column missing",
        train(table(head="id\ta\tb\tlable\n")),
        DataError,
        ("train.en.tsv", "unknown column 'label'. Did you mean 'lable'?"),
    ),
    (
        "no labels in a test file",
        {"test.de.tsv": "id\ta\tb\n1\tthe dog\tthe cat\n"},
        DataError,
        ("test.de.tsv", "unknown column 'label'"),
    ),
    (
        "extra columns",
        train("more\t" + HEAD + "".join(f"x\t{line}\n" for line in table().splitlines()[1:])),
        A,
        (),
    ),
    (
        "a column twice",
        train(table(head="id\ta\ta\tlabel\n")),
        DataError,
        ("two columns are called 'a'", "columns 2 and 3"),
    ),
    (
        "capitals in a name",
        train(table(head="id\tA\tb\tlabel\n")),
        DataError,
        ("unknown column 'a'. Did you mean 'A'?",),
    ),
    (
        "a blank before a name",
        train(table(head="id\t a\tb\tlabel\n")),
        DataError,
        ("unknown column 'a'. Did you mean ' a'?",),
    ),
    ("second text missing", train("id\ta\tlabel\n1\tthe dog\t1\n"), DataError, ("unknown column 'b'",)),
    # labels
    (
        "an unknown label",
        train(table("8\tthe dog\tcat\t2", "9\tthe dog\tcat\tjes")),
        DataError,
        ("train.en.tsv", "2 of 10 rows", "line 10: '2'; line 11: 'jes'", "There is: 0, 1"),
    ),
    (
        "a label beyond the last",
        train(table("8\tthe dog\tcat\t3")),
        DataError,
        ("1 of 9 rows have an unknown label", "line 10: '3'"),
    ),
    (
        "hidden labels",
        {"test.de.tsv": HEAD + "1\tthe dog\tcat\t-1\n2\tthe\tcat\t-1\n"},
        DataError,
        ("test.de.tsv: 2 of 2 rows", "Is this a test set whose labels are hidden?"),
    ),
    (
        "labels that a loss ignores",
        train(table("8\tthe dog\tcat\t-100")),
        DataError,
        ("line 10: '-100'", "hidden?"),
    ),
    ("an empty label", train(table("8\tthe dog\tcat\t")), DataError, ("line 10: ''",)),
    (
        "True and False",
        train(table("8\tthe dog\tcat\tTrue")),
        DataError,
        ("line 10: 'True'", "Spellings are stated in the layout's `labels`"),
    ),
    (
        "a blank behind a label",
        train(table("8\tthe dog\tcat\t1 ")),
        DataError,
        ("line 10: '1 '", "Did you mean '1'?"),
    ),
    (
        "labels numbered in another order",
        toml("{lang}.tsv", "{lang}.parquet")
        | toml('"0" = "no", "1" = "yes"', 'no = "no", yes = "yes"')
        | {"own.toml": TOML.replace(".tsv", ".parquet").replace('"0" = "no", "1" = "yes"', 'no = "no", yes = "yes"')}
        | {
            f"{s}.parquet": parquet(
                [{"id": f"{i}", "a": "the dog", "b": f"cat {s} {i}", "label": i % 2} for i in range(4)],
                ["yes", "no"] if s == "train.en" else ["no", "yes"],
            )
            for s in ("train.en", "dev.en", "test.en", "test.de")
        },
        A,
        (),
    ),
    (
        "numbers whose names are not said",
        {"own.toml": TOML.replace('labels = {"0" = "no", "1" = "yes"}\n', "")},
        DataError,
        ("8 of 8 rows have an unknown label", "There is: no, yes"),
    ),
    (
        "one class in training",
        train(HEAD + "1\tthe dog\tcat\t1\n2\tthe dog\thouse\t1\n"),
        DataError,
        ("own train in 'en'", "none with label no"),
    ),
    (
        "a class in test that training lacks",
        toml('["no", "yes"]', '["no", "yes", "maybe"]')
        | {
            "own.toml": TOML.replace('["no", "yes"]', '["no", "yes", "maybe"]').replace(
                '"1" = "yes"', '"1" = "yes", "2" = "maybe"'
            ),
            "test.de.tsv": table("8\tthe dog\tcat\t2"),
        },
        DataError,
        ("none with label maybe",),
    ),
    (
        "nearly one class",
        train(HEAD + "".join(f"{i}\tthe dog {i}\tcat\t{int(i > 0)}\n" for i in range(40))),
        W,
        ("almost all examples have one label: own train in en 97.5%",),
    ),
    # texts
    (
        "empty text",
        train(table("8\t\tcat\t1", "9\tdog\t\t0")),
        DataError,
        ("1 of 10 rows have an empty text in a", "line 10"),
    ),
    ("blanks only", odd(" \u3000 "), DataError, ("an empty text in a", "line 10")),
    (
        "invisible characters only",
        odd("\u200b\ufeff\u2060"),
        DataError,
        ("1 of 9 rows have an empty text in a", "line 10: '\\u200b\\ufeff\\u2060'"),
    ),
    ("no text at all", columns(a=None), DataError, ("1 of 4 rows have no text in column 'a'", "line 4: 'None'")),
    *((f"a text is {text}", odd(text), A, ()) for text in ("NA", "null", "None", "nan", "N/A", "-", "#N/A")),
    (
        "numbers where texts should be",
        toml("{lang}.tsv", "{lang}.parquet")
        | {
            f"{s}.parquet": parquet([{"id": f"{i}", "a": i, "b": f"cat {i}", "label": f"{i % 2}"} for i in range(4)])
            for s in ("train.en", "dev.en", "test.en", "test.de")
        },
        DataError,
        ("4 of 4 rows have no text in column 'a'", "line 1: '0'"),
    ),
    (
        "bytes",
        toml("{lang}.tsv", "{lang}.parquet")
        | {
            f"{s}.parquet": parquet(
                [{"id": f"{i}", "a": b"dog", "b": f"cat {i}", "label": f"{i % 2}"} for i in range(4)]
            )
            for s in ("train.en", "dev.en", "test.en", "test.de")
        },
        DataError,
        ("have no text in column 'a'", "b'dog'"),
    ),
    (
        "a text of a megabyte",
        odd(LONG),
        W,
        ("1 of 66 texts are longer than 10,000 characters and will be truncated", "own train in en, item 8"),
    ),
    (
        "a megabyte without a blank",
        odd("x" * 1_000_000),
        W,
        ("1 of 66 texts have no blank in 1,000 characters",),
    ),
    (
        "letters the backbone does not know",
        {
            "test.de.tsv": HEAD
            + "".join(f"{i}\t{chr(0x1320 + i) * 3} {chr(0x1330 + i)} ꙮ\tcat {i}\t{i % 2}\n" for i in range(8))
        },
        W,
        ("most tokens are unknown to the backbone: own test in de",),
    ),
    (
        "half a character",
        lines('{"id": "3", "a": "\\ud800", "b": "cat", "label": "1"}'),
        DataError,
        ("train.en.jsonl", "line 3: not a JSON object of proper text"),
    ),
    (
        "half a character, as bytes",
        train(table().encode() + b"9\t\xed\xa0\x80\tcat\t1\n"),
        DataError,
        ("line 10: byte",),
    ),
    ("NUL in a text", odd("the \0 dog"), W, ("1 of 66 texts contain NUL",)),
    ("line separators in a text", odd("one\x0btwo\x0cthree\x1cfour\x85five\u2028six\u2029seven"), A, ()),
    ("many scripts in a text", odd("dog 狗 كلب หมา सोफ़ा"), A, ()),
    ("right to left", odd("כלב בבית"), A, ()),
    (
        "marks that turn the direction",
        odd("the \u202egod"),
        W,
        ("1 of 66 texts contain marks that change the writing direction",),
    ),
    ("thousands of accents", odd("e" + "\u0301" * 900), A, ()),
    (
        "rows in a language that is spelled otherwise",
        {
            "own.toml": TOML.replace('id = "id"', 'id = "id"\nlang = "lang"'),
            "train.en.tsv": spoken("en"),
            "dev.en.tsv": spoken("en", start=100),
            "test.en.tsv": spoken("en", start=200),
            "test.de.tsv": spoken("de-AT", start=300),
        },
        W,
        ("test.de.tsv: 8 of 8 rows are not read; their lang is 'de-AT' (8 rows; did you mean 'de'?)",),
    ),
    (
        "letters with separate accents in a second text",
        {"test.de.tsv": table("8\tder Hund\t" + normalize("NFD", "어두운 집") + "\t1", start=300)},
        W,
        ("letters with separate accents (NFD) are unknown to the backbone: own test in de 1 of 9 texts in text_b",),
    ),
    ("emoji of several characters", odd("a 👩‍👩‍👧 and 𝒜"), A, ()),
    (
        "one text in two Unicode forms",
        train(table("8\tcafé\tcat\t1", "9\tcafe\u0301\tcat\t1")),
        W,
        ("1 of 10 examples differ from another only in their Unicode form", "own train in en 1"),
    ),
    ("wrongly decoded", odd("cafÃ©"), W, ("1 of 66 texts look wrongly decoded",)),
    (
        "special tokens in a text",
        odd("a [SEP] b [MASK] <s>"),
        W,
        ("1 of 66 texts spell a special token; it is read as plain text",),
    ),
    ("HTML in a text", odd("<script>alert(1)</script>"), A, ()),
    # files
    ("a header and nothing else", train(HEAD), DataError, ("train.en.tsv has no rows",)),
    ("an empty file", train(""), DataError, ("train.en.tsv is empty",)),
    ("blank lines only", train("\n\n\n"), DataError, ("train.en.tsv is empty",)),
    (
        "Latin-1",
        train(table().encode() + "9\tcafé\tcat\t1\n".encode("latin-1")),
        DataError,
        ("train.en.tsv, line 10: byte", "is not UTF-8 (Latin-1?)", "Save the file as UTF-8"),
    ),
    ("UTF-16", train(utf16(table())), DataError, ("train.en.tsv is UTF-16",)),
    (
        "UTF-16 without its mark",
        train(table().encode("utf-16-le")),
        DataError,
        ("train.en.tsv is no text", "as in UTF-16"),
    ),
    ("a byte-order mark", train("\ufeff" + table()), A, ()),
    ("CRLF", {name: text.replace("\n", "\r\n") for name, text in GOOD.items()}, A, ()),
    ("CR alone", train(table().replace("\n", "\r")), A, ()),
    ("CR inside a row", odd("the\rdog"), DataError, ("train.en.tsv, line 10: a carriage return inside a row",)),
    (
        "quotes that open and never close",
        train(HEAD + "".join(f'{i}\t"the dog {i}\tsaid "cat {i}\t{i % 2}\n' for i in range(13))),
        A,
        (),
    ),
    (
        "a row with too many cells",
        train(table("8\tthe\tdog\tcat\t1", "9\ta\tb\tc\td\t0")),
        DataError,
        ("2 rows do not have the 4 cells", "line 10 has 5; line 11 has 6"),
    ),
    (
        "a row with too few",
        train(table("8\tthe dog\t1")),
        DataError,
        ("1 rows do not have the 4 cells", "line 10 has 3"),
    ),
    ("a blank line", train(table("", "8\tthe dog\tcat\t1")), DataError, ("line 10",)),
    (
        "commas in a .tsv",
        train(table().replace("\t", ",")),
        DataError,
        ("unknown column", "if ',' stands between the cells, the layout must say so: separator"),
    ),
    (
        "semicolons in a .csv",
        other("csv", table().replace("\t", ";")),
        DataError,
        ("if ';' stands between the cells",),
    ),
    (
        "a torn .gz",
        train(None) | {"train.en.tsv.gz": gzip.compress(table(n=999).encode())[:-20]},
        DataError,
        ("train.en.tsv.gz cannot be read", "Fetch it again"),
    ),
    (
        "a bomb",
        train(None) | {"train.en.tsv.gz": gzip.compress(b"\0" * 5_000_000)},
        DataError,
        ("more than 100 times its size",),
    ),
    (
        "no training file",
        train(None),
        DataError,
        ("own train in 'en'", "train.en.tsv is not there", "dev in en; test in en, de"),
    ),
    ("a folder in place of a file", train(folder), DataError, ("train.en.tsv is a folder",)),
    ("a pipe in place of a file", train(pipe), DataError, ("train.en.tsv is a pipe",)),
    ("a link that leads nowhere", train(dangling), DataError, ("train.en.tsv is not there",)),
    ("a pipe in place of a test file", {"test.de.tsv": pipe}, DataError, ("test.de.tsv is a pipe",)),
    ("a pipe in place of the task", {"own.toml": pipe}, ParameterError, ("own.toml is a pipe",)),
    ("a folder in place of the task", {"own.toml": folder}, ParameterError, ("own.toml is a folder",)),
    ("a language without a file", {"test.de.tsv": None}, A, ()),
    (
        "a language that is asked for and has no file",
        {"test.de.tsv": None, "@langs": "de"},
        DataError,
        ("langs contains de", "own has no test examples", "there are in en"),
    ),
    *(
        (f"JSON: {what}", lines(line), DataError, ("train.en.jsonl", "line 3: not a JSON object"))
        for what, line in (
            ("a comma too many", '{"a": "x", "b": "y", "label": "1",}'),
            ("a list", "[1, 2]"),
            ("nested", "[" * 10_000),
            ("nothing", ""),
        )
    ),
    (
        "JSON: NaN",
        lines('{"id": "3", "a": NaN, "b": "y", "label": "1"}'),
        DataError,
        ("1 of 3 rows have no text in column 'a'", "line 3: 'nan'"),
    ),
    (
        "a script",
        other("py", "raise SystemExit(1)\n"),
        DataError,
        ("train.en.py is a program, and programs are never run",),
    ),
    ("a spreadsheet", other("xlsx", b"PK\x03\x04"), DataError, ("is a spreadsheet; save it as .csv",)),
    (
        "the task file is no TOML",
        {"own.toml": TOML.replace("name =", "name")},
        ParameterError,
        ("own.toml is not TOML",),
    ),
    (
        "a list of the task file is a number",
        {"own.toml": TOML.replace('langs = ["en", "de"]', "langs = 3")},
        ParameterError,
        ("own.toml", "a list of names is needed"),
    ),
    # rows beside other rows
    ("an id twice", train(table("7\tthe dog\tcat\t1")), W, ("1 of 9 ids occur more than once",)),
    (
        "an id twice, with two labels",
        train(table("7\tthe dog sees house 7\tthe cat reads book 7\t0")),
        W,
        (
            "1 of 9 ids occur more than once",
            "1 of 9 examples occur with two labels",
            "1 of 9 examples occur more than once",
        ),
    ),
    (
        "test rows that were trained on",
        {"test.en.tsv": table(start=200, n=6) + "\n".join(table().splitlines()[1:4]) + "\n"},
        W,
        ("3 of 9 scored examples are also training examples: own test in en 3",),
    ),
    (
        "a test row that was trained on, in another Unicode form",
        {
            "train.en.tsv": table("8\tcafe\u0301\tcat\t1"),
            "test.en.tsv": table("8\tcaf\u00e9\tcat\t1", start=200),
        },
        W,
        ("1 of 9 scored examples are also training examples: own test in en 1",),
    ),
]

DICTIONARIES = [
    ("missing", {"words/en-de.txt": None}, DataError, ("needs dictionaries", "macular data fetch dictionaries")),
    ("a folder in place of it", {"words/en-de.txt": folder}, DataError, ("en-de.txt is a folder",)),
    ("a pipe in place of it", {"words/en-de.txt": pipe}, DataError, ("en-de.txt is a pipe",)),
    ("zero bytes", {"words/en-de.txt": ""}, DataError, ("en-de.txt is empty",)),
    ("blank lines", {"words/en-de.txt": "\n\n"}, DataError, ("en-de.txt is empty",)),
    (
        "one column",
        {"words/en-de.txt": dictionary("alone", "again")},
        DataError,
        ("2 of 9 lines cannot be used", "line 8 holds one column", "line 9 holds one column"),
    ),
    (
        "three columns",
        {"words/en-de.txt": dictionary("wine\tWein\tnoun")},
        DataError,
        ("line 8 holds three columns",),
    ),
    ("tabs and blanks", {"words/en-de.txt": dictionary("wine\tWein", "water Wasser")}, A, ()),
    ("several blanks", {"words/en-de.txt": dictionary("wine     Wein")}, A, ()),
    ("a byte-order mark", {"words/en-de.txt": "\ufeff" + dictionary()}, A, ()),
    ("CRLF", {"words/en-de.txt": dictionary().replace("\n", "\r\n")}, A, ()),
    (
        "a pair twice",
        {"words/en-de.txt": dictionary("dog Hund", "dog Hund")},
        W,
        ("2 pairs occur twice in a dictionary and count once",),
    ),
    ("many translations", {"words/en-de.txt": dictionary("dog Köter", "dog Dogge")}, A, ()),
    (
        "words that are their own translation",
        {
            "words/en-de.txt": dictionary(
                *(f"{w} {w}" for w in "arm hand wind warm gold land sand ring finger name".split())
            )
        },
        W,
        ("mostly translate a word to itself: de",),
    ),
    (
        "a file for no language of the job",
        {"words/en-de.txt": None, "words/en-german.txt": dictionary()},
        DataError,
        ("none of the dictionaries", "Files are called en-xx.txt"),
    ),
    (
        "reversed",
        {"words/en-de.txt": "".join(f"{b} {a}\n" for a, b in (line.split() for line in dictionary().splitlines()))},
        DataError,
        ("1 of 1 dictionaries", "de: the second column has", "are the columns reversed?"),
    ),
    (
        "few words of the training rows",
        {
            "words/en-de.txt": "book Buch\nwine Wein\n",
            "train.en.tsv": HEAD
            + "".join(
                f"{i}\tthe small dog sees an old house {i}\tthe red cat drinks water here {i}\t{i % 2}\n"
                for i in range(8)
            ).replace("here 0", "book 0"),
        },
        W,
        ("know few of the training words: de",),
    ),
    ("capitals", {"words/en-de.txt": dictionary().replace("dog", "DOG")}, A, ()),
    (
        "nothing in common with the data",
        {"words/en-de.txt": "perro Hund\ngato Katze\n"},
        DataError,
        ("de: no word of the training examples is in it",),
    ),
    (
        "signs and digits",
        {"words/en-de.txt": dictionary("7 sieben", "% Prozent")},
        W,
        ("1 dictionary entries left out: 1 word with a sign at its edge",),
    ),
    (
        "notes, alternatives, arrows and placeholders",
        {"words/en-de.txt": dictionary("wine\tWein {m}", "old\talt, betagt", "new -> neu", "red\t-> rot", "x\t-")},
        W,
        (
            "4 dictionary entries cleaned: 1 signs between the columns",
            "1 notes in brackets",
            "1 several alternatives",
            "1 punctuation at the edges",
            "1 dictionary entries left out: 1 translation without a letter",
        ),
    ),
    (
        "placeholders alone",
        {"words/en-de.txt": "dog\t-\ncat\t?\nhouse\tN/A\n"},
        DataError,
        ("none of its 3 lines can be used", "2 translation without a letter", "1 placeholder"),
    ),
    ("phrases", {"words/en-de.txt": dictionary("wine\tein Glas Wein")}, A, ()),
    ("an empty translation", {"words/en-de.txt": dictionary("wine\t")}, DataError, ("line 8 holds one column",)),
    (
        "a hidden character",
        {"words/en-de.txt": dictionary("wine We\u202ein")},
        DataError,
        ("line 8 holds a hidden character",),
    ),
    (
        "a special token, HTML",
        {"words/en-de.txt": dictionary("wine [SEP]", "water <b>Wasser</b>")},
        W,
        ("2 dictionary entries cleaned: 2 notes in brackets", "1 dictionary entries left out"),
    ),
    (
        "Latin-1",
        {"words/en-de.txt": dictionary("over über").encode("latin-1")},
        DataError,
        ("en-de.txt, line 8: byte", "not UTF-8"),
    ),
    (
        "half a character",
        {"words/en-de.txt": dictionary().encode() + b"wine \xed\xa0\x80\n"},
        DataError,
        ("en-de.txt, line 8: byte",),
    ),
    (
        "one file under two names",
        {"own.toml": TOML.replace('"de"', '"de", "fr"'), "words/en-fr.txt": dictionary()},
        DataError,
        ("the same dictionary under several names: en-de.txt, en-fr.txt",),
    ),
    ("English to English", {"words/en-en.txt": dictionary("dog dog")}, A, ()),
    (
        "very many pairs",
        {"words/en-de.txt": dictionary(*(f"word{i} Vokabel{i}" for i in range(200_000)))},
        A,
        (),
    ),
    (
        "one translation for many words",
        {"words/en-de.txt": dictionary(*(f"word{i} Ding" for i in range(30)))},
        W,
        ("give one translation to many words: de 'ding' (30 of ",),
    ),
    (
        "another language's words",
        {
            "own.toml": TOML.replace('"de"', '"de", "ru"'),
            "test.ru.tsv": table(start=400),
            "words/en-ru.txt": dictionary("arm Arm"),
        },
        DataError,
        ("1 of 2 dictionaries", "ru: the translations are not in its script"),
    ),
]

PARAMETERS = [
    (dict(alpha=-0.1), "alpha is -0.1; it must be at least 0 and at most 1"),
    (dict(alpha=1.1), "at most 1"),
    (dict(alpha=float("nan")), "must be"),
    (dict(alpha=float("inf")), "must be"),
    (dict(alpha="0,5"), "a number is needed"),
    (dict(method="macular", beta2=-1), "at least 0"),
    (dict(method="macular", beta1=float("inf")), "at most 1000"),
    (dict(learning_rate=0), "above 0"),
    (dict(learning_rate=-1e-5), "above 0"),
    (dict(learning_rate=float("nan")), "must be"),
    (dict(learning_rate="1e-5"), "YAML wants a dot, write 1.0e-05"),
    (dict(batch_size=0), "at least 1"),
    (dict(batch_size=-4), "at least 1"),
    (dict(batch_size=1.5), "a whole number"),
    (dict(batch_size=True), "a number is needed"),
    (dict(batch_size="8"), "leave out the quotes"),
    (dict(rounds=0), "at least 1"),
    (dict(rounds=-1), "at least 1"),
    (dict(rounds=2.5), "a whole number"),
    (dict(discriminator_rate=0), "above 0"),
    (dict(max_length=2), "at least 8"),
    (dict(max_length=100_000), "at most 8192"),
    (dict(word_rate=-0.1), "at least 0"),
    (dict(word_rate=float("nan")), "must be"),
    (dict(pool=-1), "at least 1"),
    (dict(seed="abc"), "a number is needed"),
    (dict(seed="7"), "leave out the quotes"),
    (dict(seed=-1), "at least 0"),
    (dict(seed=2**32), "at most"),
    (dict(seed=1.5), "a whole number"),
    (dict(seed=True), "a number is needed"),
    (dict(task="xnl"), "Did you mean 'xnli'?"),
    (dict(task="XNLI"), "Did you mean 'xnli'?"),
    (dict(task=""), "task is empty"),
    (dict(task=float("nan")), "a text is needed"),
    (dict(task="../../x"), "unknown task"),
    (dict(task="x\0y"), "contains a NUL"),
    (dict(task="x" * 300), "unknown task 'xxx"),
    (dict(out="\ud800"), "half a character"),
    (dict(method="macular", stage1="xnli,xnli"), "names one thing twice"),
    (dict(method="macular", stage1="xnli,nli,qam"), "Did you mean 'xnli'?"),
    (dict(method="macular_nots_wo_xnli", task="xnli"), "does not learn 'xnli'"),
    (dict(method="makular"), "Did you mean 'macular'?"),
    (dict(backbone="mini-brt"), "Did you mean 'mini-bert'?"),
    (dict(backbone="./nowhere"), "no folder './nowhere'"),
    (dict(langs=False), "quote it: 'no'"),
    (dict(langs=["de", False]), "quote it: 'no'"),
    (dict(task=False), "quote it: 'no'"),
    (dict(langs="dee"), "Did you mean 'de'?"),
    (dict(langs="de,de"), "twice"),
    (dict(lrr=1e-5), "unknown parameter 'lrr'"),
    (dict(learning_rat=1e-5), "Did you mean 'learning_rate'?"),
    ({"x=1\nimport os": 1}, "unknown parameter 'x=1\\nimport os'"),
    ({"lambda": 1}, "unknown parameter 'lambda'"),
    (dict(lrr=1, alpha=2, seed=-1), ("lrr", "alpha is 2", "seed is -1")),
    (dict(precision="fp8"), "unknown precision"),
    (dict(seed=10**5000), "more than 30 digits"),
    (dict(alpha=["0.5"] * 10_000), "a number is needed"),
    ({"x" * 10**6: 1}, "unknown parameter"),
]


def case(row):
    "The words of a case, or the parameters it gives"
    if isinstance(row[0], str):
        return row[0]
    return ", ".join(f"{str(name)[:20]}={shown(value)[:30]}" for name, value in row[0].items())


@pytest.mark.parametrize("row", DATA + DICTIONARIES, ids=case)
@pytest.mark.quick_cases(30)
def test_a_file(outcome, row):
    _, changes, expected, words = row
    given = {name[1:]: value for name, value in changes.items() if name.startswith("@")}
    judge(outcome, {name: what for name, what in changes.items() if not name.startswith("@")}, given, expected, words)


@pytest.mark.parametrize("row", PARAMETERS, ids=case)
def test_a_parameter(outcome, row):
    judge(outcome, {}, row[0], ParameterError, row[1])


def test_the_world_is_in_order(outcome):
    judge(outcome, {}, {}, A, ())


@pytest.mark.parametrize(
    "row",
    [
        (dict(method="cosda_ml"), {}, A, ()),
        (dict(batch_size=32), {}, W, ("a batch of 32 is larger than the 8 training examples",)),
        (dict(seed=3.0), {}, A, ()),
        (dict(learning_rate=1), {}, A, ()),
        (dict(langs="de"), {}, A, ()),
    ],
    ids=case,
)
def test_a_parameter_that_passes(outcome, row):
    judge(outcome, row[1], row[0], row[2], row[3])


# backbones


def without(*names):
    "A copy of the package's backbone with a part missing"

    def make(path):
        import shutil

        from macular.data.mini_world import backbone

        shutil.copytree(backbone("mini-bert"), path)
        for name in names:
            (path / name).unlink()

    return make


@pytest.mark.parametrize(
    "lost, said",
    [
        (("config.json",), "lacks config.json"),
        (("model.safetensors",), "lacks model.safetensors"),
        (("tokenizer.json",), "lacks a tokenizer"),
    ],
)
def test_a_backbone_folder_with_a_part_missing(outcome, tmp_path, lost, said):
    judge(
        outcome,
        {"net": without(*lost)},
        dict(backbone=str(tmp_path / "net")),
        ParameterError,
        (said, "save_pretrained"),
    )


def pointer(path):
    "A backbone as git clones it without Git LFS"
    without()(path)
    (path / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 440449768\n"
    )


def test_a_pointer_in_place_of_the_weights(tmp_path):
    from macular.data.backbones import _count_parameters
    from macular.data.mini_world import backbone
    from macular.model.modules import load_encoder

    pointer(tmp_path / "net")
    with pytest.raises(
        SetupError,
        match=r"net/model.safetensors \(13\d bytes\) is no safetensors file; is it a Git LFS pointer\? Fetch it with git lfs pull",  # noqa: E501
    ):
        _count_parameters(tmp_path / "net")
    with pytest.raises(SetupError, match="cannot load the backbone"):
        load_encoder(tmp_path / "net", 0)
    for head in (b"", b"\x02", (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{x"):
        (tmp_path / "net" / "model.safetensors").write_bytes(head)
        with pytest.raises(SetupError, match="is no safetensors file"):
            _count_parameters(tmp_path / "net")
    assert _count_parameters(backbone("mini-bert")) > 1_000_000


@pytest.mark.parametrize(
    "where",
    [
        "huggingface_hub.snapshot_download",
        "transformers.AutoTokenizer.from_pretrained",
        "transformers.AutoModelForSequenceClassification.from_pretrained",
    ],
)
def test_an_error_without_a_text(outcome, monkeypatch, where):
    from macular.model.modules import load_encoder

    def fails(*a, **k):
        raise TimeoutError

    monkeypatch.setattr(where, fails)
    with pytest.raises(SetupError, match="TimeoutError"):
        if "Model" in where:
            load_encoder("some/net", 0)
        else:
            raise outcome({}, dict(backbone="some/net") if "hub" in where else {})[0]


def test_a_tokenizer_of_another_network(outcome, tmp_path):
    def make(path):
        without()(path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))

    judge(
        outcome,
        {"net": make},
        dict(backbone=str(tmp_path / "net")),
        SetupError,
        ("embeddings for 100 tokens", "do not match"),
    )


@pytest.fixture
def cached(tmp_path, monkeypatch):
    "A hub's cache with a snapshot of some files; the network is off"
    import huggingface_hub

    def snapshot(name, repo_type="model", **more):
        found = tmp_path / "cache" / name.replace("/", "--") / "0123"
        if not found.exists():
            raise FileNotFoundError("no snapshot in the cache, and the network is off")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return tmp_path / "cache"


def test_no_network_and_no_cache(outcome, cached):
    judge(
        outcome,
        {},
        dict(backbone="some/net"),
        SetupError,
        ("cannot fetch the backbone 'some/net'", "give a folder with its files"),
    )


def test_half_a_backbone_in_the_cache(outcome, cached):
    judge(
        outcome,
        {"cache/some--net/0123": without("model.safetensors")},
        dict(backbone="some/net"),
        SetupError,
        ("only a part", "lacks model.safetensors", "Go online once"),
    )


def test_half_of_the_shards_of_a_backbone(outcome, cached):
    def make(path):
        without()(path)
        (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        (path / "model.safetensors.index.json").write_text(
            json.dumps(
                {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
            )
        )

    judge(
        outcome,
        {"cache/some--net/0123": make},
        dict(backbone="some/net"),
        SetupError,
        ("lacks model-00002-of-00002.safetensors",),
    )


def test_half_of_the_rows_in_the_cache(cached):
    from macular.data.sources import Hub
    from macular.data.tasks import load

    path = cached / "facebook--xnli" / "0123" / "en"
    path.mkdir(parents=True)
    parquet(
        [{"premise": "a", "hypothesis": "b", "label": i} for i in range(3)], ["entailment", "neutral", "contradiction"]
    )(path / "train-00000-of-00004.parquet")
    with pytest.raises(SetupError, match="1 of 4 files of .* are in the hub's cache; examples would be missing"):
        load("xnli", "train", source=Hub())
    with pytest.raises(DataError, match="or it is not in the hub's cache and the network is off"):
        load("xnli", "dev", "de", source=Hub())


# the machine


@pytest.mark.parametrize("error", ["torch", "cpu", "python"])
def test_memory_that_runs_out_names_the_setting(tmp_path, monkeypatch, error):
    import torch

    import macular.train.run

    kinds = {
        "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        "python": MemoryError(),
    }

    def train(stage, data, accelerator, watch, below):
        watch("start", {"method": stage.method, "folder": tmp_path, "steps": 1, "rows": {}, "phases": [], "notes": []})
        raise kinds[error]

    monkeypatch.setattr(macular.train.run, "train", train)
    world(tmp_path, {})
    with pytest.raises(
        SetupError, match="max_length or precision=bf16; for a training, accumulation=2"
    ) as raised:
        macular.train.run.run(
            check(
                {
                    "task": str(tmp_path / "own.toml"),
                    "method": "finetune",
                    "preset": "mini",
                    "backbone": "mini-bert",
                    "out": str(tmp_path),
                }
            )
        )
    assert raised.value.__cause__ is kinds[error] and readable(str(raised.value))


def test_memory_in_a_step_names_the_portions():
    import torch

    from macular.train.trainer import _memory_errors

    with pytest.raises(SetupError, match="accumulation=2.*gradients are added"), _memory_errors(1):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_terminal_of_few_characters(monkeypatch, tmp_path):
    import io
    import sys

    from macular.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", out)
    assert main(["train", "task=日本"]) == 2
    out.flush()
    assert b"unknown task '\\u65e5\\u672c'" in out.buffer.getvalue()


def test_a_report_never_replaces_the_notebook(monkeypatch):
    import papermill
    from conftest import ROOT

    from macular.cli import main

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))
    before = (ROOT / "nbs" / "train.ipynb").read_bytes()
    assert main(["train", "preset=mini", "--report", str(ROOT / "nbs" / ".." / "nbs" / "train.ipynb")]) == 2
    assert (ROOT / "nbs" / "train.ipynb").read_bytes() == before


def test_a_notebook_that_lost_its_parameters_tag(tmp_path):
    "As papermill does it: without the tag its cell comes first, and the defaults undo it"
    import nbformat
    import papermill
    from conftest import ROOT

    notebook = nbformat.read(ROOT / "nbs" / "train.ipynb", 4)
    cells = [c for c in notebook.cells if c.cell_type == "code"][:1]
    for tag in (["parameters"], []):
        cells[0].metadata["tags"] = tag
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata | {"papermill": {}}), tmp_path / "t.ipynb"
        )
        written = papermill.parameterize.parameterize_notebook(
            nbformat.read(tmp_path / "t.ipynb", 4), {"seed": 7, "task": "qam"}
        )
        names = {"In": [""] + [c.source for c in written.cells]}
        for cell in written.cells:
            exec(cell.source, names)
        if tag:
            assert from_notebook(names).seed == 7
        else:
            with pytest.raises(ParameterError, match="papermill wrote .*seed = 7.* has no tag") as raised:
                from_notebook(names)
            assert readable(str(raised.value))


@pytest.mark.slow
def test_what_is_odd_is_kept_with_the_result(tmp_path):
    "A job that trains; its mark of one class, too"
    from macular.train.run import run

    world(tmp_path, {"test.en.tsv": table(start=200, n=6) + table().splitlines()[1] + "\n"})
    result = run(
        check(
            {
                "task": str(tmp_path / "own.toml"),
                "method": "finetune",
                "preset": "mini",
                "backbone": "mini-bert",
                "rounds": 1,
                "batch_size": 8,
                "learning_rate": 1e-9,
                "out": str(tmp_path / "runs"),
            }
        ),
        lambda event, facts: None,
    )
    assert any("1 of 7 scored examples are also training examples" in note for note in result.values["notes"])
    frame = result.predictions
    assert result.values["collapsed"] == [
        x for x in ("en", "de") if frame[frame.language == x].prediction.nunique() == 1
    ]
    assert not list(tmp_path.glob("runs/jobs/*/error.json"))


def test_a_file_nobody_may_read(tmp_path, monkeypatch):
    from macular import core

    path = tmp_path / "own.tsv"
    path.write_text("x")
    monkeypatch.setattr(
        core.os, "access", lambda p, mode: not (Path(p) == path and mode == os.R_OK)
    )  # root may read everything
    with pytest.raises(DataError, match="may not be read by you"):
        core.content(path)
    assert stat.S_ISREG(path.stat().st_mode)
