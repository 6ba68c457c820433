"""Code-switching: the draws, the texts, the rates, the display."""

import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macular.core import CHUNK, key, mix, number, pick, split, uniform, visible
from macular.data.lexicon import Lexicon
from macular.exceptions import DataError, ParameterError
from macular.text.code_switch import CodeSwitch, Draws, Place, Synonyms, _exchange, draw, item_numbers, rates, tally

ROOT = Path(__file__).parents[1]
NINE = Lexicon(
    {
        "de": {"sofa": "couch"},
        "bg": {"what": "какво"},
        "zh": {"first": "第一"},
        "ja": {"air": "エア"},
        "fr": {
            "low": "faible",
            "prices": "prix",
            "shipping": "expédition",
            "qualified": "qualifiés",
            "work": "travailler",
        },
    }
)
ADS = (
    "Sofa Loveseat at Amazon. Low Prices on Sofa Loveseat. Free Shipping on Qualified Orders.",
    "Sofa Loveseat at Amazon. faible prix on couch Loveseat. Free expédition on qualifiés Orders.",
    {4: "fr", 5: "fr", 7: "de", 10: "fr", 12: "fr"},
)
SPACE = (
    "The first cosmonaut was the Soviet air force pilot Yuri Gagarin , also the first person in space .",
    "The 第一 cosmonaut was the Soviet エア force pilot Yuri Gagarin , also the first person in space .",
    {1: "zh", 6: "ja"},
)
CREAM = (
    "Product and geography are what make cream skimming work.",
    "Product and geography are какво make cream skimming travailler.",
    {4: "bg", 8: "fr"},
)
MANY = Lexicon(
    {
        lang: {f"w{i}": tuple(f"{lang}{i}.{k}" for k in range(4)) for i in range(40)}
        for lang in ("de", "fr", "zh", "bg", "ja")
    }
)
BODY = [" ".join(f"w{(7 * i + j) % 40}" for j in range(20)) for i in range(500)]  # 10,000 words
IDS = [f"item-{i}" for i in range(len(BODY))]


def near(share, p, n):
    return abs(share - p) <= 3 * math.sqrt(p * (1 - p) / n)


# ------------------------------------------------------------------ the draws
def test_twenty_draws_are_pinned():
    # whoever changes these changes every training from text: raise ALGORITHM, and say why
    drawn = draw(CodeSwitch(("de", "fr", "zh")), ["a", "b"], [12, 8], Place(seed=7, task="xnli", field=1))
    assert "".join(map(str, drawn.tried.astype(int))) == "00100111101011101101"
    assert "".join(map(str, drawn.lang)) == "11220201110112021120"
    assert [int(b) for b in drawn.bits[[0, 11, 12, 19]]] == [
        3558275465172009114,
        14997969775901644140,
        15461051599755989809,
        15775037116492801786,
    ]
    assert "".join(str(k) for k in pick(drawn.bits, 5)) == "04343340400444413134"


def test_draws_word_by_word():
    "A second, naive way to the same draws: one word at a time, counters written out"
    switch, place = CodeSwitch(("de", "fr", "zh"), word=0.4, sentence=0.7, redraw=True), Place(3, "pawsx", 1, 5)
    drawn, k = draw(switch, IDS[:40], range(40), place), 0
    for item, length in zip(IDS[:40], range(40)):
        text = mix(3, number("pawsx"), number(item), 1, 5)
        gate = uniform(mix(text, number("gate"))) < 0.7
        for position in range(length):
            word = mix(text, position)
            assert drawn.tried[k] == (gate and uniform(mix(word, number("word"))) < 0.4)
            assert drawn.lang[k] == int(uniform(mix(word, number("lang"))) * 3)
            assert drawn.bits[k] == mix(word, number("translation"))
            k += 1
    assert k == len(drawn.tried)


def texts_of(switched):
    return [s.text for s in switched]


def test_order_and_batches_cannot_matter():
    switch, place = CodeSwitch(MANY.langs, sentence=0.8), Place(1, "qam")
    whole = texts_of(switch(BODY, IDS, MANY, place))
    alone = [switch([t], [i], MANY, place)[0].text for t, i in zip(BODY, IDS)]
    order = np.random.default_rng(0).permutation(len(BODY))
    mixed = texts_of(switch([BODY[i] for i in order], [IDS[i] for i in order], MANY, place))
    assert whole == alone and [whole[i] for i in order] == mixed
    assert switch([], [], MANY, place) == []


def test_the_same_in_another_process():
    code = (
        "from macular.text.code_switch import *; from macular.data.lexicon import Lexicon; "
        "print(CodeSwitch(('de',))(['w1 w2 w3 w4 w5 w6'], ['x'], Lexicon({'de': {f'w{i}': (f'a{i}', f'b{i}') for i in "
        "range(9)}}))[0])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and "w" in said.pop()


def test_every_counter_counts():
    switch, base = CodeSwitch(MANY.langs, redraw=True), Place(1, "qam", 0, 0)
    places = [base, Place(2, "qam", 0, 0), Place(1, "qadsm", 0, 0), Place(1, "qam", 1, 0), Place(1, "qam", 0, 1)]
    out = [tuple(texts_of(switch(BODY[:5], IDS[:5], MANY, p))) for p in places]
    out.append(tuple(texts_of(switch(BODY[:5], IDS[5:10], MANY, base))))
    assert len(set(out)) == len(out)


def test_redraw():
    for redraw in (False, True):
        rounds = {
            tuple(texts_of(CodeSwitch(MANY.langs, redraw=redraw)(BODY, IDS, MANY, Place(round=r)))) for r in range(3)
        }
        assert len(rounds) == (3 if redraw else 1)


def test_fields_are_independent():
    switch = CodeSwitch(MANY.langs)
    a, b = (draw(switch, IDS, [20] * 500, Place(field=f)).tried for f in (0, 1))
    assert near((a & b).mean(), 0.25, len(a)) and near((a ^ b).mean(), 0.5, len(a))


def test_another_dictionary_leaves_the_chosen_words_alone():
    switch = CodeSwitch(("de", "fr"))
    a, b = (draw(replaced, IDS, [20] * 500, Place()) for replaced in (switch, CodeSwitch(("de", "fr", "zh"))))
    assert (a.tried == b.tried).all()


def test_languages_are_a_set():
    assert CodeSwitch(["fr", "de", "fr"]) == CodeSwitch(("de", "fr")) and hash(CodeSwitch(["fr", "de"])) == hash(
        CodeSwitch(("de", "fr"))
    )
    assert CodeSwitch("de").langs == ("de",)


def test_equal_records_have_equal_keys():
    assert key(CodeSwitch(["de"], word=1)) == key(CodeSwitch(("de",), word=1.0))


def test_item_numbers():
    assert item_numbers(["a", "b"]).tolist() == [number("a"), number("b")]
    big = np.array([2**64 - 1, 3], np.uint64)
    assert (
        (item_numbers(big) == big).all()
        and item_numbers(big.tolist()).tolist() == big.tolist()
        and item_numbers(range(3)).tolist() == [0, 1, 2]
    )


# ------------------------------------------------------------------ the rates
@pytest.mark.parametrize("word, sentence", [(0.5, 1.0), (0.2, 1.0), (0.5, 0.5), (1.0, 0.7)])
def test_realised_rate(word, sentence):
    switch = CodeSwitch(MANY.langs, word, sentence)
    out = switch(BODY, IDS, MANY, Place(seed=11))
    got = rates(tally(out), switch)
    assert tally(out)["words"] == 10_000 and got["nominal"] == word * sentence
    assert got["attempted"] == got["found"] == got["realised"], "every word is known and none is its own translation"
    if sentence == 1:
        assert near(got["realised"], word, 10_000)
    else:
        assert near(np.mean([s.tried > 0 for s in out]), sentence, 500)


def test_languages_and_translations_are_uniform():
    out = CodeSwitch(MANY.langs, word=1.0)(BODY, IDS, MANY, Place(seed=5))
    got = rates(tally(out), CodeSwitch(MANY.langs))["langs"]
    assert sorted(got) == sorted(MANY.langs) and all(near(share, 0.2, 10_000) for share in got.values())
    picks = np.bincount([int(p.after.rsplit(".")[1]) for s in out for p in s.pieces if p.lang])
    assert len(picks) == 4 and all(near(n / 10_000, 0.25, 10_000) for n in picks)


def test_no_second_try_and_identity_is_no_change():
    lexicon = Lexicon({"de": {"hand": "Hand", "dog": "Hund"}, "fr": {"cat": "chat"}})
    switch = CodeSwitch(("de", "fr"), word=1.0)
    out = switch(["Hand HAND dog cat, 'tis -- !"] * 2000, range(2000), lexicon)
    counts = tally(out)
    assert counts["words"] == counts["tried"] == 5 * 2000, "signs are no words"
    assert near(counts["found"] / 8000, 0.5, 8000) and near(counts["changed"] / 4000, 0.5, 4000)
    assert (
        all(s.text.startswith("Hand HAND ") for s in out)
        and counts["changed.de"] + counts["changed.fr"] == counts["changed"]
    )
    assert tally(out[:7]) + tally(out[7:]) == counts


def test_rates_of_nothing():
    got = rates(tally([]), CodeSwitch(("de",)))
    assert got["realised"] == 0 and got["langs"] == {"de": 0}


def test_identity_lexicon_changes_nothing():
    out = CodeSwitch(MANY.langs, word=1.0)(BODY, IDS, MANY.identity())
    assert texts_of(out) == BODY and tally(out)["found"] == 10_000 and tally(out)["changed"] == 0


# ------------------------------------------------------------------ the texts
odd = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("wW012 \t\n\u00a0\u3000\u200d\ufeff\u202e\x1c'’-.,\"<&[]$")),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(odd, st.integers(0, 99))
def test_what_is_not_exchanged_stays_byte_for_byte(text, seed):
    lexicon = Lexicon({"de": {f"w{i}": "ÜBER-setzt" for i in range(10)} | {"w": "<b>"}})
    assert CodeSwitch(("de",), word=0.0)([text], [seed], lexicon)[0].text == text
    out = CodeSwitch(("de",), word=1.0)([text], [seed], lexicon)[0]
    assert out.original == text and "".join(p.before for p in out.pieces) == text
    assert all(p.before == p.after for p in out.pieces if p.lang is None)
    naive, done = "", 0
    for m in CHUNK.finditer(text):
        prefix, word, suffix = split(m[0])
        naive += text[done : m.start()] + prefix + lexicon["de"].get(word.lower(), (word,))[0] + suffix
        done = m.end()
    assert out.text == naive + text[done:]


def test_case_signs_and_spacing():
    out = CodeSwitch(("fr",), word=1.0)(["  “LOW\tPrices”\u00a0(work)…\n\nlow-work low's  "], ["i"], NINE)[0]
    assert out.text == "  “faible\tprix”\u00a0(travailler)…\n\nlow-work low's  "


@pytest.mark.parametrize(
    "source, words, text, switched",
    [
        ("tr", {"ılık": "lukewarm", "ilik": "marrow", "iyi": "good"}, "ILIK İyi ilik", "lukewarm good marrow"),
        ("fr", {"aujourd'hui": "today", "c'est": "it is"}, "“Aujourd’hui”, c'est C’EST", "“today”, it is it is"),
        ("en", {"caf\u00e9": "Kaffee", "don't": "nicht"}, "Cafe\u0301 don’t", "Kaffee nicht"),
        ("fr", {"e\u0301te\u0301": "\u00e9t\u00e9"}, "E\u0301te\u0301 \u00e9t\u00e9", "E\u0301te\u0301 \u00e9t\u00e9"),
    ],
    ids=["Turkish", "apostrophes", "Unicode forms", "its own translation"],
)
def test_words_are_found_in_every_spelling(source, words, text, switched):
    lexicon = Lexicon({"xx": words}, source=source)
    (out,) = CodeSwitch(("xx",), word=1.0)([text], ["i"], lexicon)
    assert out.text == switched and out.found == out.words == len(text.split())


def test_phrases_stay_one_exchange():
    out = CodeSwitch(("de",), word=1.0)(["Free!"], ["i"], Lexicon({"de": {"free": "frei von Kosten"}}))[0]
    assert out.text == "frei von Kosten!" and out.changed == 1 and out.rate == 1.0


def forced(text, langs, names):
    n = len(CHUNK.findall(text))
    return Draws(
        np.array([i in langs for i in range(n)]),
        np.array([names.index(langs.get(i, names[0])) for i in range(n)]),
        np.zeros(n, np.uint64),
    )


@pytest.mark.parametrize("before, after, langs", [ADS, SPACE, CREAM])
def test_figure_2(before, after, langs):
    out = _exchange([before], NINE, NINE.langs, forced(before, langs, NINE.langs))[0]
    assert (
        out.text == after and [p.lang for p in out.pieces if p.lang] == list(langs.values()) and out.found == len(langs)
    )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("before, after, langs", [ADS, SPACE, CREAM])
def test_figure_2_can_be_drawn(before, after, langs):
    "Every replacement of the caption comes up by chance, and so does the whole sentence"
    switch = CodeSwitch(set(langs.values()))
    drawn = texts_of(switch([before] * 20_000, range(20_000), NINE))
    assert after in drawn and before in drawn


# ------------------------------------------------------------------ the record
@pytest.mark.parametrize(
    "wrong",
    [
        dict(word=1.1),
        dict(word=-0.1),
        dict(word="0.5"),
        dict(word=True),
        dict(word=math.nan),
        dict(sentence=2),
        dict(sentence=None),
        dict(redraw=1),
        dict(redraw="yes"),
    ],
)
def test_wrong_parameters(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        CodeSwitch(**wrong)


def test_over():
    assert CodeSwitch().over(("en", "de", "fr", "sw"), NINE).langs == ("de", "fr")
    assert CodeSwitch(("zh",), 0.3).over(("de", "fr"), NINE) == CodeSwitch(("zh",), 0.3)
    with pytest.raises(DataError, match="no dictionary for any of sw"):
        CodeSwitch(("sw",)).over(("de",), NINE)


def test_wrong_calls():
    with pytest.raises(ParameterError, match="over"):
        CodeSwitch()(["a"], ["i"], NINE)
    with pytest.raises(ParameterError, match="2 texts, but 1 items"):
        CodeSwitch(("de",))(["a", "b"], ["i"], NINE)
    with pytest.raises(ParameterError, match="Did you mean 'de'"):
        CodeSwitch(("dee",))(["a"], ["i"], NINE)


# ------------------------------------------------------------------ the display
class Parsed(HTMLParser):
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.data = [], ""
        self.feed(html), self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.data += data


PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "</div></bdi><iframe src=//x>",
    '"onmouseover="alert(1)',
    "'><b onclick='x'>",
    "&lt;script&gt;",
    "<!--",
    "javascript:alert(1)",
    "]]><style>*{display:none}",
    "\u202eevil",
    "$x^2$",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_html_is_escaped(payload):
    text = f"{payload} dog{payload.replace(' ', '')} dog {payload}"
    lexicon = {
        "de": {"dog": (payload,), split(payload)[1].lower(): (payload + "x",)}
    }  # a plain mapping, checked by nobody
    out = CodeSwitch(("de",), word=1.0)([text], ["i"], lexicon)[0]
    parsed = Parsed(out._repr_html_())
    assert out.changed >= 1
    assert set(parsed.tags) <= {
        ("div", ("style",)),
        ("div", ()),
        ("b", ()),
        ("bdi", ("style", "title")),
        ("sub", ("style",)),
    }
    assert parsed.data.startswith(visible(text)) and "\u202e" not in parsed.data, (
        "the original is shown as it is, what hides in it by its number"
    )


def test_colour_is_never_the_only_sign():
    out = CodeSwitch(("bg", "fr", "xx"), word=1.0)(["low what"] * 30, range(30), dict(NINE, xx={"low": ("x",)}))
    for s in out:
        langs = [p.lang for p in s.pieces if p.lang]
        assert Parsed(s._repr_html_()).tags.count(("sub", ("style",))) == len(langs) and all(
            f"> {lang}</sub>" in s._repr_html_() for lang in langs
        )


# ------------------------------------------------------------------ near-synonyms
def test_synonyms():
    near_words = Lexicon({"en": {"small": ("little", "tiny"), "good": "fine"}})
    out = Synonyms(copies=3)(["Small, good house"] * 6000, range(6000), near_words)
    shares = {w: np.mean([w in s.text for s in out]) for w in ("Small", "little", "tiny", "good", "fine")}
    assert all(near(shares[w], 1 / 3, 6000) for w in ("Small", "little", "tiny")) and near(shares["good"], 0.5, 6000)
    copy = [texts_of(Synonyms(copies=3)(["small good"] * 40, range(40), near_words, Place(round=r))) for r in range(4)]
    assert copy[0] == copy[3] and copy[0] != copy[1] != copy[2]
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(ParameterError, match="copies"):
            Synonyms(wrong)
