"""Code-switching on token ids: for every tokenizer that is let through, the ids are those of the tokenizer on the
switched text."""

import json
import struct
import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, DebertaV2Tokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer

import macular.text.encode
from macular.core import CHUNK, mix, pick, split, uniform
from macular.data.lexicon import Lexicon
from macular.data.mini_world import Mini, backbone, lexicon, text
from macular.data.tasks import load, tasks
from macular.text.batches import tokenize
from macular.text.chunk_table import Chunked, _choose, _tabulate, longest_first
from macular.text.chunks import _WHITE, _steps, chunking_obstacle, cutting, encode_strings, frame
from macular.text.code_switch import CodeSwitch, Place, Synonyms, _exchange, draw, rates, tally
from macular.text.encode import ChunkEncoder, TextEncoder, TextSettings, Views, choose_encoder

# ------------------------------------------------------------------ sentences that were made to break it
WORDS = [
    "dog",
    "Dog",
    "DOG",
    "cat",
    "house",
    "low",
    "prices",
    "don't",
    "well-known",
    "e.g",
    "3.14",
    "2026",
    "hand",
    "İstanbul",
    "Straße",
    "naïve",
    "ǅ",
    "第一",
    "日本語",
    "東京へ",
    "ภาษาไทย",
    "น้ำ",
    "เำ",
    "한국어",
    "\u1112\u1161\u11ab",
    "\u1161",
    "ㄱ",
    "हिन्दी",
    "क्षि",
    "العربية",
    "ـ",
    "ﷺ",
    "ﬁne",
    "①",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🏽",
    "🇩🇪",
    "❤\ufe0f",
    "\u0301",
    "\u0301a",
    "a\u0301",
    "e\u0301\u0323",
    "x\u200dy",
    "\u200dx",
    "x\u200c",
    "\ufeffdog",
    "dog\ufeff",
    "\ufeff",
    "so\u00adft",
    "\u200b",
    "a\u200bb",
    "\u2060",
    "\u180e",
    "\u202edog",
    "\x1c",
    "a\x1fb",
    "\x00",
    "\x7f",
    "\ufffd",
    "\U000e0001",
    "\ue000",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[UNK]",
    "[PAD]",
    "<mask>",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "x<mask>y",
    "##dog",
    "▁",
    "▁dog",
    "a▁b",
    "@@",
    "...",
    "..........rvsd",
    "!?!",
    "--",
    "—",
    "''",
    "``",
    "$",
    "&amp;",
    "(",
    ")",
    "/",
    "\\",
    "a" * 99,
    "b" * 100,
    "c" * 101,
    "ab" * 120,
]
AROUND = [
    "",
    "",
    "",
    "",
    "",
    "",
    ".",
    ",",
    "(",
    ")",
    ").",
    "“",
    "”",
    "'",
    "’s",
    "!!",
    "…",
    "¿",
    "\u200d",
    "\u0301",
    "[",
    "。",
    "「",
]
GAPS = [" "] * 24 + ["  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2009", "\u2028", "\u3000 "]
LANGS = ("de", "ja", "xx")
TARGETS = [
    *WORDS,
    "frei von Kosten",
    "zwei  Blanks",
    "mit\u00a0NBSP",
    "第 一",
    "au-delà de",
    "l'",
    "“(x)”",
    "a.b",
    "i\u0307",
]


def number(*counters):
    return int(mix(*counters))


@cache
def adversarial():
    "Language -> word -> translations; for two words in three, one to four of them, sometimes the word itself"
    words = dict.fromkeys(split(w)[1].lower() for w in WORDS if split(w)[1])
    return {
        lang: {
            w: tuple(
                dict.fromkeys(
                    TARGETS[number("target", lang, w, k) % len(TARGETS)]
                    if number("same", lang, w, k) % 6
                    else w.capitalize()
                    for k in range(1 + number("n", lang, w) % 4)
                )
            )
            for w in words
            if number("known", lang, w) % 3
        }
        for lang in LANGS
    }


def sentences(n, seed=0, gaps=GAPS, most=8):
    "n texts of none to `most` chunks"
    counts = pick(mix("sentences", seed, "length", np.arange(n)), most + 1)
    at = np.arange(counts.sum())
    drawn = {
        name: pick(mix("sentences", seed, name, at), len(of)).tolist()
        for name, of in dict(word=WORDS, before=AROUND, after=AROUND, gap=gaps).items()
    }
    chunks = [
        AROUND[b] + WORDS[w] + AROUND[a] + gaps[g]
        for b, w, a, g in zip(*(drawn[k] for k in ("before", "word", "after", "gap")))
    ]
    edges = uniform(mix("sentences", seed, "edge", np.arange(n))).tolist()
    ends = np.cumsum(counts)
    texts = ["".join(chunks[e - c : e]) for c, e in zip(counts, ends)]
    return [" " + t if e < 0.03 else t if e < 0.06 else t.rstrip(" ") for t, e in zip(texts, edges)]


SWITCH = CodeSwitch(LANGS, word=0.8)


def by_text(fields, items, place, switch=SWITCH, words=None):
    "The switched texts of both fields and their tally"
    switched = [switch(texts, items, words or adversarial(), replace(place, field=f)) for f, texts in enumerate(fields)]
    return [[s.text for s in f] for f in switched], tally(s for f in switched for s in f)


def mismatches(found, wanted):
    "Count the pairs that differ"
    if (
        np.array_equal(found.ids, wanted.ids)
        and np.array_equal(found.types, wanted.types)
        and np.array_equal(found.starts, wanted.starts)
    ):
        return 0

    def rows(t):
        return [
            (t.ids[a:b].tolist(), None if t.types is None else t.types[a:b].tolist())
            for a, b in zip(t.starts[:-1], t.starts[1:])
        ]

    return sum(a != b for a, b in zip(rows(found), rows(wanted), strict=True))


@cache
def corpus(gaps=tuple(GAPS), n=15_000):
    "n pairs, switched once for all tokenizers"
    fields, items = [sentences(n, seed, gaps) for seed in (0, 1)], np.arange(n).astype(np.uint64)
    return fields, items, *by_text(fields, items, Place(3, "adversarial"))


# ------------------------------------------------------------------ tokenizers
@cache
def unigram():
    "A Unigram vocabulary that was learned from text, in the class that XLM-R's has; letters and signs are joined in it"
    lines = [
        line.replace("\t", " ") for lang in ("en", "de", "zh", "th", "ru") for line in text(lang, 400)
    ] + sentences(800, 9)
    blank = XLMRobertaTokenizer()
    special = sorted(blank.get_vocab(), key=blank.get_vocab().get)
    core = blank.backend_tokenizer
    core.train_from_iterator(
        lines, trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in json.loads(core.to_str())["model"]["vocab"]])


@cache
def bpe(kind="byte"):
    "A byte-level or Metaspace BPE, with a pair template"
    core = Tokenizer(models.BPE(unk_token="<s>"))
    core.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix")
        if kind in ("byte", "prefix")
        else pre_tokenizers.Metaspace(prepend_scheme=kind)
    )
    core.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind in ("byte", "prefix") else []
    core.train_from_iterator(
        sentences(2000, 8, [" "]),
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@cache
def mini(kind):
    return AutoTokenizer.from_pretrained(backbone(kind))


@cache
def lower():
    return BertTokenizer(vocab=dict(mini("mini-bert").get_vocab()), do_lower_case=True)


@pytest.fixture(scope="module")
def mbert(shared):
    return BertTokenizer(vocab=str(shared / "vocab" / "bert-base-multilingual-cased-vocab.txt"), do_lower_case=False)


# ------------------------------------------------------------------ 0 mismatches
def all_equal(tokenizer, stuff, max_length=64, whole=0.02):
    fields, items, switched, counts = stuff
    assert not chunking_obstacle(tokenizer)
    chunked = Chunked(tokenizer, fields, items, SWITCH, adversarial())
    clean, some = chunked.tokens(max_length), min(len(items), 5000)
    clean = clean._replace(
        ids=clean.ids[: clean.starts[some]],
        types=None if clean.types is None else clean.types[: clean.starts[some]],
        starts=clean.starts[: some + 1],
    )
    assert mismatches(clean, tokenize(tokenizer, [f[:some] for f in fields], max_length)) == 0
    found, tallied = chunked.switched(Place(3, "adversarial"), max_length)
    assert mismatches(found, tokenize(tokenizer, switched, max_length)) == 0
    assert tallied == counts and counts["changed"] > 0.2 * counts["words"]
    assert len(chunked.whole) <= whole * 2 * len(items), "the table is what is tested"
    return chunked


def few(n, gaps=tuple(GAPS)):
    return corpus(gaps, n)


@pytest.mark.slow
def test_30_000_sentences_wordpiece_mbert(mbert):
    all_equal(mbert, corpus())


@pytest.mark.slow
def test_30_000_sentences_unigram_xlmr():
    all_equal(unigram(), corpus())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr"])
def test_6_000_sentences_of_the_package(name):
    all_equal(mini(name), few(3000))


@pytest.mark.slow
def test_6_000_sentences_lower_case_without_accents():
    all_equal(lower(), few(3000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte", "prefix", "always", "first"])
def test_6_000_sentences_where_a_token_holds_the_blank(kind):
    all_equal(bpe(kind), few(3000, (" ",)), whole=0.1)
    chunked = all_equal(bpe(kind), few(300), whole=1)
    assert len(chunked.whole) > 300, "texts with other white space stay whole"


def test_the_sentences_are_adversarial():
    fields, _, switched, counts = few(3000)
    said = "".join(fields[0] + switched[0])
    assert (
        all(w in said for w in WORDS)
        and "frei von Kosten" in said
        and "" in fields[0]
        and counts["changed"] < counts["found"] < counts["tried"] < counts["words"]
    )
    assert any(CHUNK.sub("", t) != t and t[0].isspace() for t in fields[0] if t)


@pytest.mark.slow
def test_every_white_space():
    "Between, before and after words, also in front of marks"
    texts = [f"{w}Dog{w}{m}cat,{w}{w}dog.{w}" for w in _WHITE for m in ("", "\u0301", "\u200d")]
    for tokenizer in (
        mini("mini-bert"),
        mini("mini-xlmr"),
        lower(),
        unigram(),
        precompiled(),
        bpe("byte"),
        bpe("always"),
    ):
        chunked = Chunked(tokenizer, [texts, texts[::-1]], np.arange(len(texts)), SWITCH, adversarial())
        assert mismatches(chunked.tokens(99), tokenize(tokenizer, [texts, texts[::-1]], 99)) == 0
        switched, counts = by_text([texts, texts[::-1]], np.arange(len(texts)), Place())
        found, tallied = chunked.switched(Place(), 99)
        assert mismatches(found, tokenize(tokenizer, switched, 99)) == 0 and tallied == counts
    assert len(_WHITE) == 25


@pytest.mark.slow
def test_negative_control_word_without_its_suffix():
    """Had the word been the unit, with its signs tokenised apart, ids of Unigram would differ, and the comparison
    would see it"""
    fields, items, switched, _ = few(2000)

    def apart(texts):
        return [" ".join(" ".join(part for part in split(c) if part) for c in CHUNK.findall(t)) for t in texts]

    wrong = tokenize(unigram(), list(map(apart, switched)), 64)
    assert mismatches(wrong, tokenize(unigram(), switched, 64)) > 1000


def test_negative_control_other_draws():
    fields, items, switched, counts = few(500)
    found, tallied = Chunked(mini("mini-bert"), fields, items, SWITCH, adversarial()).switched(
        Place(4, "adversarial"), 64
    )
    assert mismatches(found, tokenize(mini("mini-bert"), switched, 64)) > 250 and tallied != counts


# ------------------------------------------------------------------ draws and counts
def test_every_chunk_becomes_what_the_text_form_makes_of_it():
    "One chunk at a time, so that one wrong draw cannot hide behind another"
    texts = sentences(300, 4, [" "])
    lengths, place, tokenizer = [len(CHUNK.findall(t)) for t in texts], Place(7, "draws", 1), mini("mini-xlmr")
    draws, chunks = draw(SWITCH, range(300), lengths, place), [c for t in texts for c in CHUNK.findall(t)]
    table = _tabulate(list(dict.fromkeys(chunks)), [], adversarial(), LANGS, tokenizer)
    numbers = {c: i for i, c in enumerate(dict.fromkeys(chunks))}
    for stay in (0, 1, 3):
        chosen, counts = _choose(table, np.array([numbers[c] for c in chunks], np.int32), draws, stay)
        alone = _exchange(chunks, adversarial(), LANGS, draws, stay)
        wanted = encode_strings(tokenizer, [s.text for s in alone])
        assert np.array_equal(table.surfaces.take(chosen), wanted.values) and np.array_equal(
            table.surfaces.lengths[chosen], wanted.lengths
        )
        assert counts == tally(alone)


@pytest.mark.parametrize("source", ["tr", "en"])
def test_spellings_of_a_word_are_found_as_in_the_text(source):
    words = {"ılık": "warm", "ilik": "marrow", "c'est": "it is", "caf\u00e9": "coffee", "don't": "not", "i": "me"}
    lexicon = Lexicon({"de": words, "fr": {w: w.upper() for w in words}}, source=source)
    texts = ["ILIK İlik I c’est C'EST", "cafe\u0301 Caf\u00e9 Don’t don't i"]
    switch, items = CodeSwitch(("de", "fr"), word=1.0), np.arange(2).astype(np.uint64)
    for name in ("mini-bert", "mini-xlmr"):
        found, tallied = Chunked(mini(name), [texts, texts], items, switch, lexicon).switched(Place(3), 64)
        switched, counts = by_text([texts, texts], items, Place(3), switch, lexicon)
        assert mismatches(found, tokenize(mini(name), switched, 64)) == 0 and tallied == counts
        assert counts["found"] == 18  # all but `I` in Turkish, all but `İlik` in English


def test_near_synonyms_by_stay():
    words = Lexicon({"en": {"dog": ("hound", "puppy"), "cat": "kitten"}})
    texts, place = ["The dog, a cat and no dog."] * 500, Place(2, "rsda", 0, 1)
    wanted = Synonyms(copies=3)(texts, range(500), words, place)
    table, every = (
        _tabulate(CHUNK.findall(texts[0]), [], words, ("en",), mini("mini-bert")),
        CodeSwitch(("en",), word=1.0, redraw=True),
    )
    chosen, counts = _choose(
        table, np.tile(np.arange(7, dtype=np.int32), 500), draw(every, range(500), [7] * 500, place), stay=1
    )
    ids = encode_strings(mini("mini-bert"), [s.text for s in wanted]).values
    assert counts == tally(wanted) and table.surfaces.take(chosen).tolist() == ids.tolist()


def test_rows_do_not_depend_on_their_company():
    fields, items, _, _ = few(400)
    whole = Chunked(mini("mini-bert"), fields, items, SWITCH, adversarial()).switched(Place(3), 32)[0]
    some = np.random.default_rng(0).permutation(400)[:90]
    part = Chunked(
        mini("mini-bert"), [[f[i] for i in some] for f in fields], items[some], SWITCH, adversarial()
    ).switched(Place(3), 32)[0]
    assert [part.ids[a:b].tolist() for a, b in zip(part.starts, part.starts[1:])] == [
        whole.ids[whole.starts[i] : whole.starts[i + 1]].tolist() for i in some
    ]


def test_sentence_rate_rounds_and_ids_as_strings():
    fields, names = few(300)[0], [f"row-{i}" for i in range(300)]
    switch = CodeSwitch(LANGS, word=0.6, sentence=0.5, redraw=True)
    chunked, seen = Chunked(mini("mini-bert"), fields, names, switch, adversarial()), set()
    for round in range(3):
        texts, counts = by_text(fields, names, Place(1, "t", round=round), switch)
        found, tallied = chunked.switched(Place(1, "t", round=round), 64)
        assert (
            mismatches(found, tokenize(mini("mini-bert"), texts, 64)) == 0
            and tallied == counts
            and rates(tallied, switch) == rates(counts, switch)
        )
        seen.add(found.ids.tobytes())
    assert len(seen) == 3


# ------------------------------------------------------------------ tables
def test_only_what_occurs_is_tabled_and_once():
    words = Lexicon(
        {"de": {"dog": ("Hund", "Köter"), "cat": "Katze", "bird": "Vogel"}, "fr": {"dog": "Hund", "cat": "cat"}}
    )
    table = _tabulate(["dog,", "cat", "--"], ["stays\x0bwhole"], words, ("de", "fr"), mini("mini-bert"))
    assert table.options.lengths.tolist() == [2, 1, 1, 1, 0, 0, 0, 0] and table.words.tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert table.options.take([0, 1]).tolist() == [4, 5, 4] and table.options.take([2, 3]).tolist() == [6, 1], (
        "Hund, is one surface form; cat is no change"
    )
    assert len(table.surfaces.lengths) == 7 and table.surfaces.values.dtype == table.options.values.dtype == np.int32
    assert table.nbytes == sum(a.nbytes for a in (table.words, *table.options, *table.surfaces))


def test_nothing_to_do():
    for n in (0, 1):
        chunked = Chunked(mini("mini-bert"), [[""] * n] * 2, np.arange(n), SWITCH, adversarial())
        found, counts = chunked.switched(Place(), 16)
        assert (
            found.ids.tolist() == [*mini("mini-bert")([""], [""])["input_ids"][0]] * n
            and not +counts
            and len(found.starts) == n + 1
        )
    assert len(encode_strings(mini("mini-bert"), []).lengths) == 0


# ------------------------------------------------------------------ truncation
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr", "byte"])
def test_truncation_of_switched_pairs(name):
    tokenizer, (fields, items, _, _) = bpe() if name == "byte" else mini(name), few(1500, (" ",))
    short = [
        i for i in items if len(fields[0][i]) + len(fields[1][i]) < 50
    ]  # the tokenizers library also makes all pairs of what it cuts off
    fields, items = [[f[i] for i in short] for f in fields], items[short]
    chunked, (switched, _) = (
        Chunked(tokenizer, fields, items, SWITCH, adversarial()),
        by_text(fields, items, Place(3, "adversarial")),
    )
    assert len(short) > 200
    for max_length in (6, 7, 8, 9, 12, 16):
        assert (
            mismatches(
                chunked.switched(Place(3, "adversarial"), max_length)[0], tokenize(tokenizer, switched, max_length)
            )
            == 0
        )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["mini-bert", "mini-xlmr"])
def test_which_side_loses(kind):
    "All lengths up to 12 against 12, ties and odd room included"
    tokenizer, pairs = mini(kind), [(a, b) for a in range(13) for b in range(13)]
    fields = [[" ".join(["dog"] * n) for n in side] for side in zip(*pairs)]
    special = sum(map(len, frame(tokenizer).ids))
    chunked, each = Chunked(tokenizer, fields, np.arange(len(pairs))), len(tokenizer.tokenize("dog"))
    for room in range(0, 27):
        wanted = tokenize(tokenizer, fields, special + room)
        assert mismatches(chunked.tokens(special + room), wanted) == 0
        a, b = longest_first([each * np.array(side) for side in zip(*pairs)], room)
        assert (a + b + special == wanted.lengths).all() and (a + b <= room).all()


# ------------------------------------------------------------------ what is let through
def charsmap(pairs):
    """SentencePiece's table of replaced characters, as XLM-R's own files bring one along: a double array of the keys,
    and their replacements"""
    units, blob, nodes = {0: 256 << 10}, b"", {b"": 256}
    for key, value in sorted((k.encode(), v.encode()) for k, v in pairs.items()):
        for i in range(1, len(key) + 1):
            if key[:i] not in nodes:
                nodes[key[:i]] = 256 * (len(nodes) + 1)
            at, base = nodes[key[: i - 1]] ^ key[i - 1], nodes[key[:i]]
            units[at] = units.get(at, 0) & 256 | (at ^ base) << 10 | key[i - 1]
        units[at] |= 256
        units[nodes[key]] = len(blob) | 1 << 31
        blob += value + b"\0"
    array = [units.get(i, 0) for i in range(256 * (len(nodes) + 2))]
    return struct.pack("<I", 4 * len(array)) + struct.pack(f"<{len(array)}I", *array) + blob


@cache
def precompiled():
    """Unigram with a normaliser like that of XLM-R's own files: some white space becomes a blank, and takes along a
    mark behind it"""
    replaced = {
        "\u3000": " ",
        "\u00a0": " ",
        "\t": " ",
        "\n": " ",
        "\u200b": " ",
        "ﬁ": "fi",
        "①": "1",
        "\u1112\u1161": "하",
    }
    tokenizer = XLMRobertaTokenizer(
        vocab=[tuple(p) for p in json.loads(unigram().backend_tokenizer.to_str())["model"]["vocab"]],
        _spm_precompiled_charsmap=charsmap(replaced),
    )
    assert tokenizer.backend_tokenizer.normalizer.normalize_str("ﬁne\u3000① \u3000\u0301") == "fine 1  "
    return tokenizer


@pytest.mark.slow
def test_6_000_sentences_with_a_precompiled_normaliser():
    assert [s["type"] for s in _steps(precompiled().backend_tokenizer.normalizer)] == ["Precompiled"]
    chunked = all_equal(precompiled(), few(3000), whole=0.9)
    assert (
        "\u3000" in cutting(precompiled()).across
        and " " not in cutting(precompiled()).across
        and 0 < len(chunked.whole) < 4500
    )


def spoiled(**parts):
    "mini-bert's tokenizer with another part"
    tokenizer = AutoTokenizer.from_pretrained(backbone("mini-bert"))
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


class Own:
    def pre_tokenize(self, text):
        pass


REFUSED = {
    "Replace": lambda: spoiled(
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s{2,}"), " ")])
    ),
    "Strip": lambda: spoiled(normalizer=normalizers.Strip()),
    "Punctuation": lambda: spoiled(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.WhitespaceSplit()])
    ),
    "Split": lambda: spoiled(pre_tokenizer=pre_tokenizers.Split(Regex(r"\w+\s"), "isolated")),
    "ByteLevel": lambda: spoiled(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
    "Metaspace": lambda: spoiled(pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
    r"Metaspace \(first\)": lambda: spoiled(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
    ),
    "lack of a pre-tokenizer": lambda: spoiled(pre_tokenizer=None),
    "its custom Python part": lambda: spoiled(pre_tokenizer=pre_tokenizers.PreTokenizer.custom(Own())),
    "added token 'New York'": lambda: added(mini("mini-bert"), "New York"),
    "added token '  '": lambda: added(mini("mini-bert"), "  "),
    "added token 'x'": lambda: added(bpe(), AddedToken("x", rstrip=True)),
    "dropout": lambda: dropping(),
    "on the left": lambda: AutoTokenizer.from_pretrained(backbone("mini-bert"), truncation_side="left"),
    "Replace, Strip": lambda: DebertaV2Tokenizer(),
    "not a fast": lambda: SimpleNamespace(is_fast=False),
}


def added(tokenizer, token):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), pad_token=tokenizer.pad_token
    )
    tokenizer.add_tokens([token])
    return tokenizer


def dropping():
    core = Tokenizer.from_str(bpe().backend_tokenizer.to_str())
    core.model.dropout = 0.1
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="</s>")


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason):
    with pytest.raises(AssertionError, match=reason):
        assert chunking_obstacle(REFUSED[reason]()) is None


def test_let_through():
    assert not any(
        chunking_obstacle(t)
        for t in (
            mini("mini-bert"),
            mini("mini-xlmr"),
            lower(),
            unigram(),
            precompiled(),
            *map(bpe, ("byte", "prefix", "always", "first")),
        )
    )
    assert not chunking_obstacle(added(mini("mini-bert"), "Kubernetes")) and not chunking_obstacle(
        added(bpe(), "   ")
    )


@pytest.mark.parametrize("token", ["Kubernetes", "cat,", "do"])
def test_added_tokens_in_chunks(token):
    tokenizer, texts = added(mini("mini-bert"), token), ["a Kubernetes cat, dogKubernetes.", "do Kubernetesdo cat,cat"]
    assert (
        mismatches(Chunked(tokenizer, [texts, texts], np.arange(2)).tokens(64), tokenize(tokenizer, [texts, texts], 64))
        == 0
    )


# ------------------------------------------------------------------ views
@cache
def rows(name, n=120):
    return load(tasks[name], "train", source=Mini(train=n))


def same(a, b):
    return mismatches(a, b) == 0 and a.pad == b.pad and a.ids.dtype == b.ids.dtype and a.starts.dtype == b.starts.dtype


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("kind", ["mini-bert", "mini-xlmr"])
def test_views_are_those_of_the_text_form(kind, redraw, monkeypatch):
    "All tasks of the mini world, clean and switched, two rounds"
    names, setting = (
        ("xnli", "pawsx", "qam", "qadsm"),
        TextSettings(mini(kind), lexicon(), CodeSwitch(redraw=redraw), seed=5, max_length=24),
    )
    views = Views([tasks[n] for n in names], {n: rows(n) for n in names}, setting)
    found = [views.items(round, ("", "_aug")).views | {"rates": views.rates(round)} for round in (0, 1)]
    assert {type(w) for w in views._ways.values()} == {ChunkEncoder} and views.notes == []
    monkeypatch.setattr(macular.text.encode, "chunking_obstacle", lambda tokenizer: "this test")
    plain = Views([tasks[n] for n in names], {n: rows(n) for n in names}, setting)
    wanted = [plain.items(round, ("", "_aug")).views | {"rates": plain.rates(round)} for round in (0, 1)]
    assert {type(w) for w in plain._ways.values()} == {TextEncoder} and len(plain.notes) == redraw
    assert all(same(f[s], w[s]) for f, w in zip(found, wanted) for s in ("", "_aug"))
    assert found[0]["rates"] == wanted[0]["rates"] and found[1]["rates"] == wanted[1]["rates"]
    assert same(found[0]["_aug"], found[1]["_aug"]) is not redraw


def test_a_refused_tokenizer_goes_by_text():
    tokenizer = REFUSED["Replace"]()
    setting = TextSettings(tokenizer, lexicon(), CodeSwitch(redraw=True), max_length=24)
    views, own = Views([tasks["xnli"]], {"xnli": rows("xnli")}, setting), rows("xnli")
    assert type(choose_encoder(tasks["xnli"], own, setting)) is TextEncoder and "Replace" in views.notes[0]
    assert (
        mismatches(views.items(0, ("",)).views[""], tokenize(tokenizer, [list(own["text_a"]), list(own["text_b"])], 24))
        == 0
    )


def test_one_that_slips_through_is_noticed(monkeypatch):
    "A normaliser that acts across blanks, which nobody named"
    monkeypatch.setattr(macular.text.encode, "chunking_obstacle", lambda tokenizer: None)
    setting = TextSettings(
        spoiled(normalizer=normalizers.Replace(Regex(r"s (?=\w)"), "")), lexicon(), CodeSwitch(), max_length=24
    )
    with pytest.warns(UserWarning, match="xnli: the tokenizer"):
        choose_encoder(tasks["xnli"], rows("xnli"), setting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            type(choose_encoder(tasks["xnli"], rows("xnli"), replace(setting, tokenizer=mini("mini-bert"))))
            is ChunkEncoder
        )


# ------------------------------------------------------------------ real rows, real dictionaries
@pytest.mark.slow
def test_multinli_with_the_muse_dictionaries(mbert, shared):
    "Every twentieth row of the sample, 14 languages, two rounds"
    from macular.data.sources import Folder

    langs = "ar bg de el es fr hi ja ko ru th tr vi zh".split()
    words, data = Lexicon.read(shared / "dictionaries", langs), load(tasks["xnli"], "train", source=Folder(shared))
    data = data.select(range(0, len(data), 20))
    fields, items, switch = (
        [list(data["text_a"]), list(data["text_b"])],
        list(data["id"]),
        CodeSwitch(langs, redraw=True),
    )
    chunked = Chunked(mbert, fields, items, switch, words)
    assert mismatches(chunked.tokens(128), tokenize(mbert, fields, 128)) == 0
    for round in (0, 1):
        texts, counts = by_text(fields, items, Place(0, "xnli", round=round), switch, words)
        found, tallied = chunked.switched(Place(0, "xnli", round=round), 128)
        assert mismatches(found, tokenize(mbert, texts, 128)) == 0 and tallied == counts
    assert len(data) > 1400 and chunked.whole == [] and chunked.nbytes < 20 * 2**20
