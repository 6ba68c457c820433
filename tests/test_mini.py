"""The mini world: true labels, parallel rows, trees, dictionaries, and two encoders that know all its words."""

import gzip
import subprocess
import sys
from collections import Counter
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macular.core import CHUNK
from macular.data.mini_world import Mini, _items, _makers, _told, backbone, lexicon, text, web
from macular.data.scenes import (
    NP,
    Dice,
    Scene,
    _part_of,
    _split_of,
    _theme,
    act,
    against,
    alone,
    arrange,
    contrast,
    converse,
    draw_scene,
    grammars,
    less,
    moved,
    plain,
    relation,
    sort,
    swapped,
    tell,
    transfer,
    turned,
    vocabulary,
    words,
)
from macular.data.tasks import Task, load, tasks
from macular.exceptions import ParameterError
from macular.store import read_json, read_lines, sha256

ROOT = Path(__file__).parents[1]
SMALL = Mini(train=120, dev=40, test=60)
TRUE = Mini(train=300, dev=100, test=100, mislabelled=0.0)
TASKS = sorted(_makers)
FRAMES = (act, transfer, converse, contrast, arrange, alone)
scenes = st.builds(
    lambda n, split: draw_scene(Dice("test", n), split, FRAMES),
    st.integers(0, 10**6),
    st.sampled_from(("train", "dev", "test")),
)

# --- a second, naive reading of what scenes say -----------------------------------------------------------------------

DOWN = {"buys": "sells", "gets": "gives", "learns": "teaches", "follows": "leads", "below": "above", "after": "before"}


def facts(s):
    "A scene as role -> (noun, mods), told from one fixed side"
    roles = {
        "who": s.subj,
        "what": s.obj,
        "whom": s.other and s.other[1],
        "where": s.place,
        "when": s.time,
        "how": s.adv,
    }
    verb, side, mod = s.verb, s.other and s.other[0], None
    if side == "than":
        quality = s.obj.noun
        roles["what"], mod = None, min(quality, relation("~")[quality])
        if mod != quality:
            roles["who"], roles["whom"] = roles["whom"], roles["who"]
        side = "than"
    elif verb in ("teaches", "learns", "follows", "leads"):
        roles["what"], roles["whom"] = None, s.obj or s.other[1]
        if verb in DOWN:
            roles["who"], roles["whom"] = roles["whom"], roles["who"]
        verb, side = DOWN.get(verb, verb), None
    elif verb in ("buys", "gets", "sells", "gives"):
        if verb in DOWN:
            roles["who"], roles["whom"] = roles["whom"], roles["who"]
        verb, side = DOWN.get(verb, verb), None
    elif side in ("below", "after"):
        roles["who"], roles["whom"], side = roles["whom"], roles["who"], DOWN[side]
    return (verb, side, mod, s.never), roles


def covers(wide, narrow):
    "Return whether a part says no more than another one"
    if wide is None:
        return True
    if narrow is None:
        return False
    if isinstance(wide, str) or isinstance(wide[1], tuple) and hasattr(wide[1], "noun"):
        return wide == narrow
    return wide.noun in (narrow.noun, relation("<").get(narrow.noun)) and set(wide.mods) <= set(narrow.mods)


def together(a, b):
    "Return whether two parts can be said of one scene"
    if a is None or b is None or a == b:
        return True
    if not (hasattr(a, "noun") and hasattr(b, "noun")):
        return False
    related = a.noun == b.noun or relation("<").get(a.noun) == b.noun or relation("<").get(b.noun) == a.noun
    return related and (set(a.mods) <= set(b.mods) or set(b.mods) <= set(a.mods))


def entails(a, b):
    (core_a, parts_a), (core_b, parts_b) = facts(a), facts(b)
    if a.never:
        return core_a == core_b and parts_a == parts_b
    return core_a == core_b and all(covers(parts_b[role], parts_a[role]) for role in parts_a)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_inference_labels_are_what_the_scenes_say(split):
    seen = set()
    for _, (a, _), (b, _), label in _items(TRUE, tasks["xnli"], split):
        assert entails(a, b) == (label == "entailment"), (label, a, b)
        seen.add(label)
    assert seen == set(tasks["xnli"].labels)


def test_neutral_hypotheses_can_be_true_with_their_premise_and_contradictions_cannot():
    for _, (a, _), (b, _), label in _items(TRUE, tasks["xnli"], "train"):
        (core_a, parts_a), (core_b, parts_b) = facts(a), facts(b)
        agree = core_a == core_b and all(together(parts_a[r], parts_b[r]) for r in parts_a)
        assert agree == (label != "contradiction"), (label, a, b)


def test_paraphrases_say_the_same_and_the_others_do_not():
    for _, (a, _), (b, _), label in _items(TRUE, tasks["pawsx"], "train"):
        assert (facts(a) == facts(b)) == (label == "paraphrase"), (label, a, b)
        assert a != b


def test_a_passage_holds_an_answer_exactly_when_the_label_says_so():
    def answers(q, s):
        asked = {
            k
            for k, v in (
                ("subj", q.subj.noun),
                ("obj", q.obj and q.obj.noun),
                ("place", q.place and q.place[1].noun),
                ("time", q.time),
            )
            if v in ("who", "what", "where", "when")
        }
        plain_parts = all(
            getattr(q, k) in (None, getattr(s, k))
            for k in ("subj", "obj", "place", "time", "adv", "other")
            if k not in asked
        )
        return q.verb == s.verb and plain_parts and all(getattr(s, k) for k in asked)

    for _, (q, _), passage, label in _items(TRUE, tasks["qam"], "train"):
        near = [s for s in passage if isinstance(s, Scene)]
        assert any(answers(q, s) for s in near) == (label == "yes"), (label, q, near)


def test_a_good_advertisement_sells_what_was_asked_for():
    for _, query, ad, label in _items(TRUE, tasks["qadsm"], "train"):
        want, offer = query[0], next(s for s in ad if isinstance(s, Scene) and s.verb)
        good = covers(want.subj, offer.obj) and want.place in (None, offer.place)
        assert good == (label == "Good"), (label, want, offer)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_logic_of_scenes(s):
    if other := turned(s):
        assert turned(other) == s and other != s and facts(other) == facts(s) and facts(swapped(other)) != facts(s)
    assert moved(moved(s)) == s and facts(moved(s)) == facts(s)
    for t in less(s):
        assert entails(s, t) and not entails(t, s)
    for t in against(s, Dice("a")):
        assert not entails(s, t)


@settings(max_examples=40, deadline=None)
@given(scenes, st.sampled_from(sorted(grammars)), st.integers(0, 99))
def test_every_word_hangs_on_one_top(s, lang, n):
    tokens = tell([s, "."], lang, Dice("tree", n))
    assert [t.head for t in tokens].count(-1) == 1
    for i in range(len(tokens)):
        steps = 0
        while tokens[i].head >= 0:
            i, steps = tokens[i].head, steps + 1
            assert steps < len(tokens)
    assert len(CHUNK.findall(plain(tokens))) == len(tokens)


# --- words ------------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "ar": "؀ۿ",
    "bg": "Ѐӿ",
    "el": "ͰϿ",
    "hi": "ऀॿ",
    "ru": "Ѐӿ",
    "th": "฀๿",
    "ur": "؀ۿ",
    "zh": "一鿿",
    "ko": "가힣",
}


@pytest.mark.parametrize("lang", sorted(grammars))
def test_a_word_means_one_thing(lang):
    seen = {}
    for concept, options in vocabulary(lang).items():
        for word in options:
            seen.setdefault(word, []).append(concept)
    double = {w: c for w, c in seen.items() if len(c) > 1}
    assert double == ({"na": ["with", "and"]} if lang == "sw" else {})


@pytest.mark.parametrize("lang", sorted(SCRIPTS))
def test_words_are_in_their_own_script(lang):
    low, high = SCRIPTS[lang]
    own = [w for c, options in vocabulary(lang).items() for w in options if words()[c][lang] != "="]
    strange = [w for w in own if not all(low <= ch <= high or ch in " -\u200c" for ch in w)]
    assert len(own) > 200 and not strange


# --- the source -------------------------------------------------------------------------------------------------------


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", TASKS)
def test_rows_are_parallel_and_well_formed(name):
    task = tasks[name]
    assert SMALL.langs(task, "train") == ("en",) and set(SMALL.langs(task, "test")) == set(task.langs)
    english = load(name, "test", "en", SMALL)
    assert len(english) == 60 and len(set(english["id"])) == 60 and english.features["label"].names == list(task.labels)
    for lang in SMALL.langs(task, "test"):
        rows = load(name, "test", lang, SMALL)
        assert rows["id"] == english["id"] and rows["label"] == english["label"]
        assert all(t.strip() and "  " not in t for column in ("text_a", "text_b") for t in rows[column])
    assert len(load(name, "train", source=SMALL)) == 120


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_more_rows_begin_with_the_same_rows(name):
    few, many = (Mini(train=n).read(tasks[name], "train", "en") for n in (10, 30))
    assert few.to_list() == many.to_list()[:10]


LARGE = Mini(train=800, dev=200, test=200)


@cache
def statements(name, split, world=LARGE):
    "Return the meanings of a split's English examples, each scene with its usual words; none for questions"
    return {
        plain(tell([s], "en", Dice(0), 0.0))
        for _, *texts, _ in _items(world, tasks[name], split)
        for t in texts
        if "?" not in t
        for s in t
        if isinstance(s, Scene) and s.verb
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_no_statement_is_in_two_splits(name):
    train, dev, test = (statements(name, split) for split in ("train", "dev", "test"))
    assert min(map(len, (train, dev, test))) > 100 and not train & dev and not train & test and not dev & test


@pytest.mark.slow
def test_negative_control_rows_of_a_split_do_repeat():
    assert statements("xnli", "train") & statements("xnli", "train", Mini(seed=1, train=4000))


@settings(max_examples=100, deadline=None)
@given(scenes)
def test_what_follows_and_what_does_not_stays_in_its_split(s):
    found = [s, *less(s), *against(s, Dice(0)), moved(s), swapped(s) if s.obj or s.other else s, turned(s) or s]
    assert (
        len({_split_of(_theme(t)) for t in found}) == 1 and len({tuple(map(_part_of, _theme(t))) for t in found}) == 1
    )


def what(name, world):
    return {
        c
        for _, a, b, _ in _items(world, tasks[name], "train")
        for s in (*a, *b)
        if isinstance(s, Scene) and (s.subj or NP("")).noun != "shop"
        for c in (s.verb, *(np.noun for np in (s.subj, s.obj, s.other and s.other[1]) if np))
        if c and sort(c) not in ("name", "word")
    }


@pytest.mark.slow
def test_unrelated_tasks_are_about_different_things():
    apart, together = ({name: what(name, Mini(train=400, related=r)) for name in TASKS} for r in (0.0, 1.0))
    for a, b in combinations(TASKS, 2):
        assert not apart[a] & apart[b] and len(together[a] & together[b]) > len(together[a]) / 4
    assert all(len(found) >= 10 for found in apart.values())


def test_the_stated_share_is_mislabelled():
    wrong = Mini(train=2000, mislabelled=0.2)
    right = [y for *_, y in _items(Mini(train=2000, mislabelled=0.0), tasks["xnli"], "train")]
    share = sum(x != y for x, y in zip(right, (y for *_, y in _items(wrong, tasks["xnli"], "train")))) / 2000
    assert abs(share - 0.2) < 0.03


def test_foreign_word_order_is_the_english_one():
    task, (ours, theirs) = tasks["xnli"], (Mini(dev=30, synonyms=0.0, own_order=o) for o in (1.0, 0.0))
    a, b = ours.read(task, "dev", "tr"), theirs.read(task, "dev", "tr")
    assert a["text_a"] != b["text_a"] and [sorted(t.split()) for t in a["text_a"]] == [
        sorted(t.split()) for t in b["text_a"]
    ]
    assert ours.read(task, "dev", "en").to_list() == theirs.read(task, "dev", "en").to_list()


@pytest.mark.slow
def test_trees_fit_the_words():
    for name in TASKS:
        for lang in set(tasks[name].langs) - {"sw", "th"}:
            rows, trees = load(name, "dev", lang, SMALL), SMALL.trees(tasks[name], "dev", lang)
            for a, b, (heads_a, heads_b) in zip(rows["text_a"], rows["text_b"], trees):
                assert len(a.split()) == len(heads_a) and len(b.split()) == len(heads_b)
                assert all(-1 <= h < len(heads) for heads in (heads_a, heads_b) for h in heads)


@pytest.mark.parametrize(
    "values",
    [{"mislabelled": 1.5}, {"train": -1}, {"test": 2.5}, {"seed": "0"}, {"related": True}, {"own_order": float("nan")}],
)
def test_bad_knobs_are_refused(values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        Mini(**values)


def test_unknown_names_are_refused():
    other = Task("mine", labels=("a", "b"), langs=("en",))
    assert SMALL.langs(other, "test") == ()
    with pytest.raises(ParameterError, match="does not hold this task"):
        SMALL.read(other, "test", "en")
    with pytest.raises(ParameterError, match="split"):
        SMALL.read(tasks["xnli"], "tset", "en")
    with pytest.raises(ParameterError, match="language"):
        SMALL.read(tasks["xnli"], "test", "xx")
    with pytest.raises(ParameterError, match="dependency trees"):
        SMALL.trees(tasks["xnli"], "test", "sw")
    with pytest.raises(ParameterError, match="mini-bert"):
        backbone("mini-brt")
    with pytest.raises(ParameterError, match="language"):
        list(text("xx", 1))


def test_provenance_has_no_path():
    (origin,) = SMALL.provenance(tasks["xnli"], "train", "en")
    assert not Path(origin["file"]).is_absolute() and len(origin["sha256"]) == 64 and not origin["noncommercial"]


SAME = """
import hashlib, sys
from macular.data.mini_world import Mini, lexicon, text, _told, web
from macular.data.tasks import tasks
rows = [r for name in ("xnli", "pawsx", "qam", "qadsm") for r in _told(Mini(dev=20), tasks[name], "dev", "de")]
print(hashlib.sha256(repr((rows, lexicon().digest, list(text("ja", 50)))).encode()).hexdigest(), sorted(m for m in ("torch", "transformers", "pandas", "datasets", "pyarrow", "scipy") if m in sys.modules))
"""  # noqa: E501


@pytest.mark.slow
def test_equal_in_every_process_and_light():
    runs = [
        subprocess.run(
            [sys.executable, "-c", SAME],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and runs[0].endswith(" []\n")


# --- dictionaries and text --------------------------------------------------------------------------------------------


def test_the_dictionary_is_imperfect_as_stated():
    whole, usual = lexicon(missing=0.0, same=0.0), lexicon()
    assert usual.langs == tuple(x for x in grammars if x not in ("en", "sw", "ur")) and usual.missing == ("sw", "ur")
    for lang in usual.langs:
        known = {w for options in vocabulary(lang).values() for w in options}
        assert all(set(targets) <= known for targets in whole[lang].values()) and all(
            w == w.lower() for w in whole[lang]
        )
        share = 1 - len(usual[lang]) / len(whole[lang])
        assert 0.04 < share < 0.17
    assert any(len(targets) > 1 for targets in whole["de"].values())


def test_wrong_entries_are_wrong():
    right, wrong = lexicon(missing=0.0, same=0.0), lexicon(missing=0.0, same=0.0, wrong=1.0)
    both = set(right["fr"]) & set(wrong["fr"])
    assert sum(right["fr"][w] == wrong["fr"][w] for w in both) / len(both) < 0.05


def the_words(lang):
    return {w for options in vocabulary(lang).values() for word in options for w in word.split()} | set(".?,")


def test_text_is_of_one_language_and_borrows_as_stated():
    own, english = the_words("ko"), the_words("en")
    pure, usual = list(text("ko", 200, borrowed=0.0)), list(text("ko", 2000))
    assert all(line.count("\t") == 1 and set(line.replace("\t", " ").split()) <= own for line in pure)
    told = [w for line in usual for w in line.split() if w in english ^ own]
    assert set(told) <= own | english and abs(sum(w in english for w in told) / len(told) - web("ko").borrowed) < 0.05
    assert (
        all(set(line.split()) <= the_words("sw") for line in text("sw", 200))
        and web("sw").lines < web("ko").lines < web("en").lines
    )


LABEL_WORDS = ("so", "but", "and", "yes", "no", "maybe")  # of relations and of the tasks' prompts


@pytest.mark.parametrize("lang", sorted(grammars))
def test_text_holds_no_label_word(lang):
    other = " ".join(word for c, found in vocabulary(lang).items() if c not in LABEL_WORDS for word in found)
    named = {w for c in LABEL_WORDS for w in (*vocabulary(lang)[c], *vocabulary("en")[c])} - set(other.split())
    lines = [*text(lang, 300), *text(lang, 100, paired=1.0)]
    assert named and not named & {w for line in lines for w in line.split()}


@cache
def said_in_text(paired):
    "The sentences of 4,000 lines of English text, with and without their first word"
    return {
        s.strip()
        for line in text("en", 4000, paired=paired)
        for part in line.split("\t")
        for whole in part.split(" .")
        for s in (whole, whole.partition(" ")[2])
    }


@pytest.mark.slow
@pytest.mark.parametrize("paired", [1.0, 0.0])
@pytest.mark.parametrize("name", TASKS)
def test_text_says_nothing_that_test_rows_say(name, paired):
    said = said_in_text(paired)
    assert not said & (statements(name, "test") | statements(name, "dev")) and said & statements(
        name, "train", Mini(train=4000)
    )


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr"])
def test_backbone(name):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = backbone(name)
    assert (folder / "model.safetensors").stat().st_size <= 4e6
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert net.config.hidden_dropout_prob == net.config.attention_probs_dropout_prob == 0.1
    assert net.config.max_position_embeddings >= 130 and net.config.vocab_size == len(tokenizer)
    for word in ("yes", "no", "maybe"):
        assert len(tokenizer.tokenize(word)) == 1
    for lang in grammars:
        lines = list(text(lang, 300, seed=9)) + [
            r for name in TASKS for r in SMALL.read(tasks[name], "dev", lang)["text_a"]
        ]
        assert tokenizer.unk_token_id not in {i for ids in tokenizer(lines)["input_ids"] for i in ids}
    assert not any(str(ROOT) in p.read_text() or "/work" in p.read_text() for p in folder.glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "fr", "sw", "tr"])
@pytest.mark.parametrize("name", ["mini-bert", "mini-xlmr"])
def test_backbone_knows_the_world(name, lang):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, net = (
        AutoTokenizer.from_pretrained(backbone(name)),
        AutoModelForMaskedLM.from_pretrained(backbone(name)).float().eval(),
    )
    right, places = 0, 0
    for _, a, b, _ in _told(TRUE, tasks["pawsx"], "dev", lang):
        a, b = a, [t.text for t in b]
        for k in range(len(b) - 1):
            ids = tokenizer.encode(b[k], add_special_tokens=False)
            if len(ids) > 1 or k % 3:
                continue
            inputs = tokenizer(plain(a), " ".join([*b[:k], tokenizer.mask_token, *b[k + 1 :]]), return_tensors="pt")
            with torch.no_grad():
                logits = net(**inputs).logits[0, inputs["input_ids"][0] == tokenizer.mask_token_id][0]
            right, places = right + int(logits.argmax() == ids[0]), places + 1
    assert places > 100 and right / places > 0.5, right / places


@pytest.mark.slow
def test_pretraining_on_a_folder_of_text(tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as f:
        f.write("It rains today. We stay at home.\n" * 40 + "Nobody came\n" * 5)
    (tmp_path / "b.txt").write_text("Es regnet heute. Wir bleiben zu Hause.\n" * 40, encoding="utf-8")
    papermill.execute_notebook(
        ROOT / "nbs" / "pretrain.ipynb",
        tmp_path / "out.ipynb",
        cwd=str(ROOT / "nbs"),
        progress_bar=False,
        parameters=dict(
            text_dir=str(tmp_path), kind="xlmr", layers=1, width=16, heads=2, vocab_size=300, out=str(tmp_path / "net")
        ),
    )
    from transformers import AutoModel, AutoTokenizer

    assert AutoModel.from_pretrained(tmp_path / "net").config.model_type == "xlm-roberta"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "net")) <= 300


def pretrain(interrupt=False, **parameters):
    "Run the code of pretrain.ipynb up to the written encoder; `interrupt`: stop after the first save"
    names = {}
    for cell in read_json(ROOT / "nbs" / "pretrain.ipynb")["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        exec(source, names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= parameters
        if "def save(" in source and interrupt:
            names["save"] = partial(save_and_stop, names["save"])
        if "pretraining.json" in source:
            return names["history"]


def save_and_stop(save, step):
    save(step)
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_pretraining_continues_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    (tmp_path / "en.txt").write_text("It rains today. We stay at home.\nNobody came. They sleep.\n" * 40)
    small = dict(text_dir=str(tmp_path), layers=1, width=16, heads=2, vocab_size=300, batch_tokens=256, save_every=8)
    whole = pretrain(out=str(tmp_path / "whole"), **small)
    with pytest.raises(KeyboardInterrupt):
        pretrain(out=str(tmp_path / "net"), interrupt=True, **small)
    with pytest.raises(ParameterError, match="unfinished run of other settings"):
        pretrain(out=str(tmp_path / "net"), **small | {"mask": 0.5})
    assert pretrain(out=str(tmp_path / "net"), **small) == whole and whole[-1][0] == 20
    assert sha256(tmp_path / "net" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    assert not (tmp_path / "net" / "state.safetensors").exists()


def test_the_control_was_run_with_these_encoders():
    records = read_lines(ROOT / "nbs" / "records" / "control.jsonl")
    assert {r["encoder"] for r in records} == {
        sha256(backbone(name) / "model.safetensors")[:16] for name in ("mini-bert", "mini-xlmr")
    }, "remade encoders: run paper/04_control's last cell"
    done = Counter((r["method"], r["dictionary"], r["world"], r["backbone"], r["task"]) for r in records)
    assert set(done.values()) == {3} and len(done) == 8 * len(TASKS)
