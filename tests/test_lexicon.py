"""Dictionaries: what is read, what is refused, what is reported."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macular.core import CHUNK, count_words, split
from macular.data.lexicon import MUSE_LICENCE, Lexicon, read_file, read_pairs
from macular.exceptions import DataError, ParameterError, SetupError

ROOT = Path(__file__).parents[1]
REAL = ROOT / "../shared/data/dictionaries"
real = pytest.mark.skipif(
    not (REAL / "en-de.txt").is_file(), reason="needs the MUSE files in ../shared/data/dictionaries"
)
# lines, and different source words that are read, of the published files
SIZES = {
    "ar": (33663, 22198),
    "bg": (61240, 49366),
    "de": (101931, 74578),
    "el": (56070, 45038),
    "es": (112580, 92875),
    "fr": (113286, 94472),
    "hi": (38221, 31587),
    "ja": (35353, 31580),
    "ko": (22357, 17516),
    "ru": (53186, 42558),
    "th": (24658, 22385),
    "tr": (67799, 58700),
    "vi": (77020, 74039),
    "zh": (39334, 32495),
}
FIGURE_2 = [
    ("fr", "low", "faible"),
    ("fr", "prices", "prix"),
    ("de", "sofa", "couch"),
    ("fr", "shipping", "expédition"),
    ("fr", "qualified", "qualifiés"),
    ("zh", "first", "第一"),
    ("ja", "air", "エア"),
    ("bg", "what", "какво"),
    ("fr", "work", "travailler"),
]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check_message(error):
    text = str(error.value)
    assert len(text.splitlines()) <= 12 and len(text) <= 1000, text
    assert not any(c in text for c in "\u202e\x00\ufeff"), "a hidden character reached the message"
    return text


# ------------------------------------------------------------------ words
@pytest.mark.parametrize(
    "chunk, parts",
    [
        ("work.", ("", "work", ".")),
        ("“(Free”),", ("“(", "Free", "”),")),
        ("don't", ("", "don't", "")),
        ("--", ("--", "", "")),
        ("well-known!", ("", "well-known", "!")),
        ("$20", ("$", "20", "")),
        ("cafe\u0301,", ("", "cafe\u0301", ",")),
        ("\u200bhidden\u200b", ("\u200b", "hidden", "\u200b")),
        ("U.S.", ("", "U.S", ".")),
        ("का", ("", "का", "")),
        ("_x_", ("_", "x", "_")),
    ],
)
def test_split(chunk, parts):
    assert split(chunk) == parts


@given(st.text())
def test_chunks_lose_nothing(text):
    chunks = CHUNK.findall(text)
    assert ["".join(split(c)) for c in chunks] == chunks
    assert "".join(chunks) == "".join(c for c in text if not c.isspace() or c in "\x1c\x1d\x1e\x1f")


def test_count_words():
    assert count_words(["The the, THE!", "-- a"]) == {"the": 3, "a": 1}


# ------------------------------------------------------------------ files
def test_columns_by_tab_or_blanks(tmp_path):
    path = write(
        tmp_path,
        "x.txt",
        "\ufeffthe die\r\nthe\tder\r\nthe   das\r\n  sofa \t Sofa \r\nfree\tfrei von Kosten\r\nice cream\tEis",
    )
    pairs, lines = read_pairs(path)
    assert dict(pairs) == {
        "the": ("die", "der", "das"),
        "sofa": ("Sofa",),
        "free": ("frei von Kosten",),
        "ice cream": ("Eis",),
    }
    assert lines == 6


def test_duplicates_are_merged_in_file_order_and_counted(tmp_path):
    lexicon = read_file(write(tmp_path, "own.tsv", "a z\nA y\na z\nb b\n"), "de")
    assert lexicon["de"]["a"] == ("z", "y") and lexicon["de"]["b"] == ("b",)
    (origin,) = lexicon.provenance
    assert (origin["lines"], origin["merged"], origin["file"], origin["licence"]) == (4, 1, "own.tsv", "not stated")
    assert origin["noncommercial"] is False and len(origin["sha256"]) == 64


def test_contents_may_be_shared_but_not_changed(tmp_path):
    lexicon = read_file(write(tmp_path, "x", "a b\n"), "de")
    with pytest.raises(TypeError):
        lexicon["de"]["a"] = ("c",)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", ["is empty"]),
        (b"\n\n", ["is empty"]),
        (b"\xef\xbb\xbf", ["is empty"]),
        ("a b\n\nc d\n", ["1 of 3", "line 2 holds nothing"]),
        ("a b\nc\n", ["1 of 2", "line 2 holds one column"]),
        ("a\t\nb c", ["line 1 holds one column"]),
        ("\tb\na b", ["line 1 holds one column"]),
        ("a\tb\tc\n", ["line 1 holds three columns"]),
        ("a b\nc \u202ed\n", ["line 2 holds a hidden character"]),
        ("a b\x00\n", ["a hidden character"]),
        ("a b\rc d\r", ["a hidden character"]),
        ("a b\n\ufeffc d\n", ["line 2 holds a hidden character"]),
        ("a b\nc d\u2028e f\n", ["line 2 holds a hidden character"]),
        ("\n".join(["one"] * 5000), ["5,000 of 5,000", "line 1 ", "line 2 ", "line 3 "]),
        ("x" * 100_000, ["line 1 holds one column"]),
        ("a b\nüber über\n".encode("latin-1"), ["line 2: byte 4 is not UTF-8"]),
        (b"a b\nc \xed\xa0\x80\n", ["line 2: byte 6 is not UTF-8"]),
        ("a b\n".encode("utf-16"), ["is UTF-16"]),
    ],
)
def test_bad_files_name_file_line_and_count(tmp_path, content, said):
    path = write(tmp_path, "en-de.txt", content)
    with pytest.raises(DataError) as error:
        read_pairs(path)
    text = check_message(error)
    assert all(s in text for s in ["en-de.txt", *said]), text


def test_a_folder(tmp_path):
    (
        write(tmp_path, "en-de.txt", "dog Hund\n"),
        write(tmp_path, "en-fr.txt", "dog\tchien\n"),
        write(tmp_path, "de-en.txt", "hund\tdog\n"),
    )
    lexicon = Lexicon.read(tmp_path, ("en", "fr", "de", "sw", "ur", "fr"), licence=MUSE_LICENCE)
    assert lexicon.langs == ("fr", "de") and lexicon.missing == ("sw", "ur")
    assert [o["file"] for o in lexicon.provenance] == ["en-fr.txt", "en-de.txt"] and all(
        o["noncommercial"] for o in lexicon.provenance
    )
    assert "sw" in repr(lexicon) and "| ur | no dictionary" in lexicon._repr_markdown_()
    assert Lexicon.read(tmp_path, ["en", "de", "fr"], source="de").langs == ("en",)
    assert str(tmp_path) not in str(lexicon.provenance)
    assert Lexicon.read(tmp_path, ["sw"]).langs == ()


def test_a_folder_without_any(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="en-xx.txt") as error:
            Lexicon.read(folder, ["de"])
        assert "macular data fetch dictionaries" in check_message(error)
    with pytest.raises(DataError, match="no dictionary file"):
        read_file(tmp_path / "absent.txt", "de")


def test_same_bytes_twice(tmp_path):
    for lang in ("sv", "sw"):
        write(tmp_path, f"en-{lang}.txt", "dog hund\n")
    with pytest.raises(DataError, match="same dictionary under several names: en-sv.txt, en-sw.txt") as error:
        Lexicon.read(tmp_path, ["sv", "sw"])
    check_message(error)


@pytest.mark.parametrize("lang", ["../en-de", "en/de", "", "d", "DE", "de\n", "de\0", "~", 3, None])
def test_codes_cannot_be_paths(tmp_path, lang):
    write(tmp_path, "en-de.txt", "dog Hund\n")
    with pytest.raises(ParameterError, match="language code"):
        Lexicon.read(tmp_path, [lang])
    with pytest.raises(ParameterError, match="language code"):
        Lexicon({lang: {"a": "b"}})


# ------------------------------------------------------------------ what is cleaned and left out
@pytest.mark.parametrize(
    "line, pairs",
    [
        ("lamp\tLampe {f} [ugs.]", "lamp Lampe"),
        ("red\t(das) rot", "red rot"),
        ("teacher\tLehrer(in)", "teacher Lehrer"),
        ("run (verb)\tlaufen <a href='x'>", "run laufen"),
        ("red\trot, rote; (das) Rot", "red rot, red rote, red Rot"),
        ("red\trot/rötlich | rote", "red rot, red rötlich, red rote"),
        ("red\t红/赤、朱", "red 红, red 赤, red 朱"),
        ("cat\t1. Katze 2. Kater", "cat Katze, cat Kater"),
        ("dog\tHund; m", "dog Hund"),
        ("color, colour\tFarbe", "color Farbe, colour Farbe"),
        ("and/or\tund/oder", "and/or und/oder"),
        ("speed\tkm/h", "speed km/h"),
        ("many\t1,000 Dinge", "many 1,000 Dinge"),
        ("red -> rot", "red rot"),
        ("red → rot", "red rot"),
        ("red => rot", "red rot"),
        ("red : rot", "red rot"),
        ("red: rot", "red rot"),
        ("red = rot", "red rot"),
        ("red | rot", "red rot"),
        ("ice cream -> Eis", "ice cream Eis"),
        ("red\t-> rot", "red rot"),
        ("red ->\trot", "red rot"),
        ("red\t: rot", "red rot"),
        ("red\t- rot", "red rot"),
        ("red\t• rot", "red rot"),
        ('red\t"rot"', "red rot"),
        ("regards,\tGrüße,", "regards Grüße"),
        ("red:\trot", "red rot"),
        ("etc.\tusw.", "etc usw"),
        ("e.g.\tz.B.", "e.g z.B."),
        ("hello\thallo!", "hello hallo"),
        ("red\trot [ugs.], rote {adj}", "red rot, red rote"),
        ("don’t\tnicht", "don't nicht"),
        ("well-known\tbe-kannt", "well-known be-kannt"),
        ("red\t-", ""),
        ("red\t—", ""),
        ("red\t???", ""),
        ("red\t...", ""),
        ("red\t(kein)", ""),
        ("red\t%", ""),
        ("red\t١", ""),
        ("red\tN/A", ""),
        ("red\t#N/A", ""),
        ("red\tNaN", ""),
        ("red\tTODO", ""),
        ("red\tki-", ""),
        ("step-\tkambo", ""),
        ("yes}}\tja}}", ""),
        ("c++\tC++", ""),
        ("#the\t#der", ""),
        ("red\trot, -", "red rot"),
    ],
)
def test_a_line_is_cleaned_or_left_out(tmp_path, line, pairs):
    words, lines = read_pairs(write(tmp_path, "x.txt", f"{line}\nkept behalten\n"))
    found = [f"{word} {t}" for word, translations in words.items() for t in translations if word != "kept"]
    assert ", ".join(found) == pairs and lines == 2


@pytest.mark.parametrize(
    "head, name, is_head",
    [
        ("word\ttranslation", "x.txt", True),
        ("English\tGerman", "x.txt", True),
        ("source target", "x.txt", True),
        ("eng\tdeu", "x.txt", True),
        ("English word\tGerman_translation", "x.txt", True),
        ("en\tde", "en-de.txt", True),
        ("en\tde", "x.txt", False),
        ("word\tWort", "en-de.txt", False),
        ("german\tgerman", "en-de.txt", False),
    ],
)
def test_a_header_line_is_left_out(tmp_path, head, name, is_head):
    lexicon = read_file(write(tmp_path, name, f"{head}\nred\trot\n"), "de")
    assert lexicon.provenance[0].get("left_out", {}) == ({"header line": 1} if is_head else {})
    assert len(lexicon["de"]) == 2 - is_head


def test_what_is_cleaned_is_counted(tmp_path):
    lines = ["lamp\tLampe {f}", "red\trot, rote", "blue\t-> blau", "chair\t-", "when\tki-", "ok\tgut", "red\trote"]
    (origin,) = read_file(write(tmp_path, "x.txt", "\n".join(lines)), "de").provenance
    assert origin["cleaned"] == {"notes in brackets": 1, "several alternatives": 1, "punctuation at the edges": 1}
    assert origin["left_out"] == {"translation without a letter": 1, "part of a word": 1} and origin["merged"] == 1
    (origin,) = read_file(write(tmp_path, "y.txt", "red rot\n"), "de").provenance
    assert not {"cleaned", "left_out"} & set(origin)
    with pytest.raises(DataError, match="none of its 2 lines can be used: 2 translation without a letter") as error:
        read_file(write(tmp_path, "z.txt", "red\t-\nblue\t-\n"), "de")
    check_message(error)


def test_null_is_a_placeholder_where_many_words_have_it(tmp_path):
    few = read_file(write(tmp_path, "few.txt", "zero\tnull\nred\tnull\nblue\tblau\n"), "de")
    assert list(few["de"]) == ["blue"] and few.provenance[0]["left_out"] == {"placeholder": 2}
    many = "zero\tnull\n" + "".join(f"word{'x' * i}\tWort{'x' * i}\n" for i in range(200))
    assert read_file(write(tmp_path, "many.txt", many), "de")["de"]["zero"] == ("null",)


# ------------------------------------------------------------------ the form of a word
def test_words_are_looked_up_in_one_form(tmp_path):
    text = "cafe\u0301\tKaffee\naujourd'hui\the\u0301\nl’eau\tWasser\n"
    lexicon = read_file(write(tmp_path, "fr-de.txt", text), "de", source="fr")
    assert lexicon["de"] == {"café": ("Kaffee",), "aujourd'hui": ("hé",), "l'eau": ("Wasser",)}
    for word in ("CAFÉ", "Cafe\u0301", "aujourd’hui", "Aujourdʼhui", "L'eau"):
        assert lexicon.form(word) in lexicon["de"]
    assert count_words(["Café cafe\u0301 L’eau l'eau"], "fr") == {"café": 2, "l'eau": 2}


@pytest.mark.parametrize("lang, forms", [("tr", "iyi ışık"), ("az", "iyi ışık"), ("en", "i\u0307yi işik")])
def test_lower_case_of_the_language(tmp_path, lang, forms):
    lexicon = read_file(write(tmp_path, "x.txt", "İYİ good\nIŞIK light\n".replace("Yİ", "yi")), "en", source=lang)
    assert list(lexicon["en"]) == forms.split() and lexicon.source == lang
    assert lexicon.only(["en"]).source == lexicon.shuffle(0).source == lang
    assert lexicon.drop_identity().form("I") == lexicon.form("I")


# ------------------------------------------------------------------ contents
def test_from_a_dictionary():
    lexicon = Lexicon({"de": {"Sofa": "Couch", "sofa": ["Sofa", "Couch"], "low": ("tief", "tief")}, "sw": {}})
    assert dict(lexicon["de"]) == {"sofa": ("Couch", "Sofa"), "low": ("tief",)}
    assert lexicon.missing == ("sw",) and "sw" not in lexicon and len(lexicon) == 1 and lexicon.provenance == ()
    with pytest.raises(ParameterError, match="Did you mean 'de'"):
        lexicon["den"]


@pytest.mark.parametrize(
    "words", [{"a": ""}, {"": "a"}, {"a": " b"}, {"a": "b\x00"}, {"a": ("b", "\ud800")}, {"a": "b\nc"}]
)
def test_bad_contents(words):
    with pytest.raises(DataError, match="1 pairs of 'de'") as error:
        Lexicon({"de": words})
    check_message(error)


def test_digest_is_of_the_contents():
    a = Lexicon({"de": {"x": ("1", "2"), "y": "3"}, "fr": {"x": "4"}})
    assert a.digest == Lexicon({"fr": {"x": "4"}, "de": {"y": "3", "x": ("1", "2")}}).digest
    assert a == Lexicon({"fr": {"x": "4"}, "de": {"Y": "3", "x": ("1", "2")}}) and a != Lexicon({})
    assert (
        len(
            {
                a.digest,
                Lexicon({"de": {"x": ("2", "1"), "y": "3"}, "fr": {"x": "4"}}).digest,
                a.only(["de"]).digest,
                a.shuffle(0).digest,
                a.identity().digest,
            }
        )
        >= 4
    )
    code = (
        "from macular.data.lexicon import Lexicon; print(Lexicon({'de': {'x': ('1', '2'), 'y': '3'}, 'fr': {'x': "
        "'4'}}).digest)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == a.digest


def test_report():
    lexicon = Lexicon({"de": {"dog": ("Hund", "Dog"), "hand": "Hand", "cat": "Katze"}, "xx": {"chien": "dog"}})
    de, xx = lexicon.report(["A dog, a DOG;", "hand (cat)"])
    assert de == {
        "language": "de",
        "words": 3,
        "translations": 1.33,
        "identity": 0.5,
        "covered": round(4 / 6, 3),
        "changed": round((2 * 0.5 + 0 + 1) / 6, 3),
        "note": "",
    }
    assert xx["covered"] == 0 and "reversed" in xx["note"]
    assert lexicon.report("a dog")[0]["covered"] == 0.5 and lexicon.report([])[0]["covered"] == 0
    assert "covered" not in lexicon.report()[0]


def test_no_dictionary_at_all():
    assert Lexicon({}).report()._repr_markdown_() == "*no dictionary*"


def test_drop_identity():
    lexicon = Lexicon({"de": {"hand": "Hand", "dog": ("DOG", "Hund")}, "vi": {"pizza": "pizza"}}).drop_identity()
    assert dict(lexicon["de"]) == {"dog": ("Hund",)} and lexicon.missing == ("vi",)


def test_shuffle_keeps_everything_but_the_meaning():
    lexicon = Lexicon(
        {
            "de": {f"w{i}": (f"t{i}", f"u{i}")[: 1 + i % 2] for i in range(500)},
            "fr": {f"w{i}": f"f{i}" for i in range(500)},
        }
    )
    a, b, again = lexicon.shuffle(1), lexicon.shuffle(2), lexicon.shuffle(1)
    assert (
        a == again
        and a != b
        and set(a["de"]) == set(lexicon["de"])
        and sorted(a["de"].values()) == sorted(lexicon["de"].values())
    )
    kept = sum(a["fr"][w] == lexicon["fr"][w] for w in lexicon["fr"])
    assert kept < 8  # one on average
    assert [int(t[0][1:]) for t in a["de"].values()] != [int(t[0][1:]) for t in a["fr"].values()], (
        "languages are shuffled apart"
    )


def test_identity():
    lexicon = Lexicon({"de": {"dog": ("Hund", "Hündin")}}).identity()
    assert dict(lexicon["de"]) == {"dog": ("dog",)}


def test_simplify_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(SetupError, match=r"macular\[zh\]"):
        Lexicon({"zh": {"still": "還"}}).simplify()
    assert Lexicon({"de": {"dog": "Hund"}}).simplify().langs == ("de",)  # nothing to convert, nothing needed


def test_simplify():
    pytest.importorskip("opencc", reason="needs the extra 'zh'")
    lexicon = Lexicon({"zh": {"still": ("還", "还")}, "ja": {"still": "還"}}).simplify()
    assert lexicon["zh"]["still"] == ("还",) and lexicon["ja"]["still"] == ("還",)


def test_imports_nothing_heavy():
    code = "import sys, macular.data.lexicon, macular.text.code_switch; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "pandas", "datasets", "pyarrow", "scipy", "fastcore", "nbdev"} & set(loaded)


# ------------------------------------------------------------------ the published files
@pytest.mark.slow
@real
def test_published_files():
    start = time.process_time()
    lexicon = Lexicon.read(REAL, [*SIZES, "ca"], licence=MUSE_LICENCE)
    assert time.process_time() - start < 15  # about 2 s
    assert {o["lang"]: (o["lines"], len(lexicon[o["lang"]])) for o in lexicon.provenance} == SIZES
    assert lexicon.missing == ("ca",) and max(o["merged"] for o in lexicon.provenance) == 32  # `is,` beside `is`
    changed = [sum(o.get("cleaned", {}).values()) + sum(o.get("left_out", {}).values()) for o in lexicon.provenance]
    assert sum(changed) < 0.003 * sum(o["lines"] for o in lexicon.provenance)
    assert all(target in lexicon[lang][word] for lang, word, target in FIGURE_2)
    assert sum(" " in t for words in lexicon.values() for ts in words.values() for t in ts) == 0
    identity = {row["language"]: row.get("identity") for row in lexicon.report()}
    assert identity["vi"] == 0.912 and identity["fr"] == 0.649


@pytest.mark.slow
@real
def test_published_files_on_real_text():
    data = REAL.parent / "XNLI-1.0/xnli.dev.tsv"
    rows = [line.split("\t") for line in data.read_text(encoding="utf8").split("\n")]
    a, b = rows[0].index("sentence1"), rows[0].index("sentence2")
    texts = {text for row in rows if row[0] == "en" for text in (row[a], row[b])}
    rows = {row["language"]: row for row in Lexicon.read(REAL, ["de", "zh"]).report(texts)}
    # MUSE lists `is,` and `be,` with a comma, and not `is` and `be`: 2 points of German's coverage
    assert rows["de"]["covered"] == pytest.approx(0.762, abs=0.005)
    assert rows["de"]["changed"] == pytest.approx(0.684, abs=0.005)
    assert rows["zh"]["covered"] == pytest.approx(0.462, abs=0.015) and rows["zh"]["changed"] == pytest.approx(
        0.443, abs=0.015
    )


def test_the_rules_of_look_up_are_in_keys_where_words_or_examples_come_from_files(tmp_path):
    from macular.core import key
    from macular.data.mini_world import lexicon
    from macular.data.tasks import tasks
    from macular.train.config import check, fill
    from macular.train.inputs import Data, digests
    from macular.train.methods import methods

    given, method = {"task": "pawsx", "method": "cosda_ml", "preset": "mini"}, methods["cosda_ml"]
    found = digests(Data(fill(check(given))), method, [tasks["pawsx"]])
    assert found["lexicon"] == lexicon().digest  # the mini world's keys stay
    write(tmp_path, "en-de.txt", "dog Hund\n")
    data = Data(fill(check(given | {"lexicon_dir": str(tmp_path)})))
    words = Lexicon({"de": {"dog": "Hund"}})
    assert digests(data, method, [tasks["pawsx"]])["lexicon"] == key([words.digest, "en", Lexicon.rules])
    assert digests(data, methods["finetune"], [tasks["pawsx"]])["lexicon"] is None
