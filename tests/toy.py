"""A tiny world for tests: four tasks, three dictionaries, four kinds of backbone.

Everything in it is counted from names by `core.mix`; no generator of torch or numpy takes part, so it is the same
in every process and under every version. Folders are made once a process and go with it."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
    logging,
)

from macular.core import mix, pick, uniform
from macular.data.lexicon import Lexicon
from macular.data.tasks import Task
from macular.model.modules import load_encoder
from macular.text.syntax import tree_from_heads
from macular.train.build import Hyperparameters, TrainingInputs, build
from macular.train.trainer import Loop, fit

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
FOLDER = tempfile.TemporaryDirectory(prefix="macular-toy-")
LANGS = ("en", "de", "fr", "zh", "sw")  # no dictionary for sw
LENGTH = 20  # tokens a pair; some pairs are longer and are cut

# ------------------------------------------------------------------ words
ENGLISH = "the a dog cat house garden sees drinks water wine is not small old red good and in book reads".split()
LEXICON = Lexicon(
    {
        "de": dict(
            dog="Hund",
            cat="Katze",
            house="Haus",
            garden="Garten",
            sees="sieht",
            drinks="trinkt",
            water="Wasser",
            wine="Wein",
            small=("klein", "kleine"),
            old="alt",
            red="rot",
            book="Buch",
            the=("der", "die", "das"),
        ),
        "fr": dict(
            dog="chien",
            cat="chat",
            house="maison",
            garden="jardin",
            sees="voit",
            drinks="boit",
            water="eau",
            wine="vin",
            small="petit",
            good=("bon", "bonne"),
            red="rouge",
            the=("le", "la"),
            reads="lit",
        ),
        "zh": dict(dog="狗", cat="猫", house="房子", water="水", red="红", wine="wine", good="好", book="书"),
    }
)

NEIGHBOURS = Lexicon(
    {"en": dict(small=("old", "not"), dog="cat", cat=("dog", "house"), good="red", sees=("drinks", "is"))}
)


class _Chains(dict):
    "Trees in which every word depends on the one before it"

    def __missing__(self, text):
        return tree_from_heads(text, range(-1, len(text.split()) - 1))


# ------------------------------------------------------------------ tasks
TASKS = {
    t.name: t
    for t in (
        Task(
            "toy3", ("yes", "maybe", "no"), LANGS, neighbour="toy2", max_length=LENGTH, words=("good", "small", "not")
        ),
        Task("toy2", ("different", "same"), LANGS[:3], neighbour="toy3", max_length=LENGTH),
        Task("toy4", ("a", "b", "c", "d"), LANGS[:2], max_length=LENGTH),
        Task("toy2b", ("bad", "good"), LANGS[:4], neighbour="toy4", max_length=LENGTH),
    )
}


@cache
def rows(name, n):
    "The first n English rows of a task, with texts of two to nine words; the label can be told from the first text"
    task, texts = TASKS[name], ([], [])
    for field, column in enumerate(texts):
        for i in range(n):
            length = 2 + pick(mix("toy", name, i, field, "length"), 8)
            column.append(
                " ".join(ENGLISH[w] for w in pick(mix("toy", name, i, field, range(length)), len(ENGLISH))).capitalize()
                + "."
            )
    labels = [sum(map(ord, a)) % len(task.labels) for a in texts[0]]
    features = Features(
        {
            "id": Value("string"),
            "text_a": Value("string"),
            "text_b": Value("string"),
            "label": ClassLabel(names=list(task.labels)),
        }
    )
    return Dataset.from_dict(
        {"id": [f"{name}-{i}" for i in range(n)], "text_a": texts[0], "text_b": texts[1], "label": labels},
        features=features,
    )


# ------------------------------------------------------------------ tokenizer and backbones
SPECIAL = {"xlmr": ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]}  # XLM-R pads with 1, and counts its positions from it
KINDS = ("bert", "xlmr", "deberta", "modernbert")


@cache
def tokenizer(kind="bert"):
    "Word pieces: every word of the world but a few, and all letters"
    words = {w for d in LEXICON.values() for ts in d.values() for t in ts for w in t.lower().split()} | set(
        ENGLISH[:-2]
    )
    letters = {c for w in [*words, *ENGLISH] for c in w}
    vocabulary = [
        *SPECIAL.get(kind, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
        ".",
        *sorted(words | letters),
        *sorted("##" + c for c in letters),
        "[MASK]",
    ]
    ids = {w: i for i, w in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(w, ids[w]) for w in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=inputs,
    )


def redraw(module, *counters):
    """Fill every parameter with numbers that depend on its name and the counters only; large enough for a net to have
    opinions"""
    with torch.no_grad():
        for name, p in module.named_parameters():
            u = torch.from_numpy(uniform(mix(*counters, name, range(p.numel())))).reshape(p.shape) - 0.5
            p.copy_(0.8 * u if p.ndim > 1 else 0.3 * u + (1 if name.endswith("weight") else 0))
    return module


@cache
def backbone(kind="bert", dropout=0.0, seed=0):
    "A folder with config, weights and tokenizer, as one from the hub has them"
    words, vocabulary = tokenizer(kind), len(tokenizer(kind))
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        pad_token_id=words.pad_token_id,
    )
    drop = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    ends = dict(bos_token_id=words.cls_token_id, eos_token_id=words.sep_token_id)
    make = {
        "bert": lambda: BertModel(BertConfig(**shape, **drop)),
        "xlmr": lambda: XLMRobertaModel(XLMRobertaConfig(**shape, **drop, **ends), add_pooling_layer=False),
        "deberta": lambda: DebertaV2Model(
            DebertaV2Config(
                **shape,
                **drop,
                pooler_dropout=dropout,
                relative_attention=True,
                pos_att_type=["c2p", "p2c"],
                position_biased_input=False,
                type_vocab_size=0,
            )
        ),
        "modernbert": lambda: ModernBertModel(
            ModernBertConfig(
                **shape,
                **ends,
                cls_token_id=words.cls_token_id,
                sep_token_id=words.sep_token_id,
                embedding_dropout=dropout,
                attention_dropout=dropout,
                mlp_dropout=dropout,
                classifier_dropout=dropout,
                global_attn_every_n_layers=2,
                local_attention=8,
            )
        ),
    }
    folder = Path(FOLDER.name) / f"{kind}-{dropout}-{seed}"
    redraw(make[kind](), "backbone", kind, seed).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


# ------------------------------------------------------------------ what a training is made from
def material(*names, near=None, shared=False, n=10, kind="bert", dropout=0.0, lexicon=LEXICON):
    "Rows, tokenizer, backbone and dictionaries of some tasks; `shared` adds an f_m, from another backbone than f_t's"
    sizes = {
        name: n + 2 * i for i, name in enumerate([*names, *([near] if near else [])])
    }  # unequal, and the last batch is ragged
    f_m = load_encoder(backbone(kind, dropout, seed=1), seed=9).eval() if shared else None
    return TrainingInputs(
        tasks=[TASKS[name] for name in names],
        rows={name: rows(name, size) for name, size in sizes.items()},
        tokenizer=tokenizer(kind),
        backbone=backbone(kind, dropout),
        lexicon=lexicon,
        near=TASKS[near] if near else None,
        shared=f_m,
        neighbours=NEIGHBOURS,
        trees=_Chains(),
    )


def recipe(**changes):
    return Hyperparameters(
        **dict(seed=3, rounds=1, batch_size=4, learning_rate=2e-3, discriminator_rate=5e-3, passes=2, alpha=0.3)
        | changes
    )


def for_row(row, **changes):
    "The material a row of the paper needs"
    if row.shared:
        return material("toy3", near="toy2", shared=True, **changes)
    return material("toy3", "toy2", "toy4", **changes) if row.tasks == "all" else material("toy3", **changes)


def made(row, stuff, numbers, double=True, redrawn=True):
    "Build a row, in float64, every number of its net and discriminator counted from names"
    built = build(row, stuff, numbers)
    for phase in built.phases:
        if redrawn:
            redraw(phase.trains, phase.name, numbers.seed)
        if double:
            phase.trains.double()
    return built


def train(built, numbers, **options):
    return fit(built.phases, Loop(numbers.rounds, numbers.seed), **options)


def state(module):
    "A copy of all numbers of a module"
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def gap(a, b):
    "The largest absolute difference of two states; infinite where one is not a number"
    assert a.keys() == b.keys()
    return max(
        (x - y).abs().nan_to_num(nan=torch.inf).max().item()
        for x, y in ((a[name].double(), b[name].double()) for name in a)
    )


def same(a, b):
    "Return whether two states are equal, bit for bit"
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
