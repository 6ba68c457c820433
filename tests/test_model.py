"""Model folders: they say what the run said, load where this package is not, and are nothing but weights, names and a
tokenizer."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from macular.cli import main
from macular.data.mini_world import Mini
from macular.data.tasks import load
from macular.deploy.card import _limits, _scores, _seeds_of, card, result_of, select_checkpoint
from macular.deploy.distill import distill
from macular.deploy.huggingface import MacularConfig, MacularForSequenceClassification, export, predict
from macular.exceptions import DataError, ParameterError, StorageError
from macular.store import read_json, verify, write_json
from macular.text.batches import tokenize
from macular.train.config import check
from macular.train.methods import Readings, methods
from macular.train.run import run

pytestmark = pytest.mark.slow

SMALL = dict(preset="mini", max_train=48, rounds=2, langs="de", stage1="pawsx,xnli", task="pawsx")
WORLD = Mini(train=48, dev=40, test=60)
ONE_ENCODER = ("finetune", "cosda_ml", "rs_da", "xtune", "mtl_ft", "macular_nots")
TWO_ENCODERS = ("macular", "macular_grl")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A finished run of a row, made when first asked for"
    out = tmp_path_factory.mktemp("runs")

    @cache
    def of(method, **changes):
        given = SMALL | ({} if method.startswith(("macular", "mtl")) else {"stage1": "paper"}) | changes
        return run(check(given | {"method": method, "out": str(out)}), lambda event, facts: None, WORLD)

    return of


@pytest.fixture(scope="module")
def folder(done, tmp_path_factory):
    "The model folder of a row"
    out = tmp_path_factory.mktemp("models")
    return cache(lambda method, **changes: export(done(method), out / "-".join([method, *changes.values()]), **changes))


def predicted(result, lang="de"):
    return result.predictions.query(f"language == '{lang}'").reset_index(drop=True)


# the model is the run's


@pytest.mark.parametrize("method", ONE_ENCODER + TWO_ENCODERS)
def test_it_says_what_the_run_said(done, folder, method):
    said, rows = predicted(done(method)), load("pawsx", "test", "de", WORLD).to_pandas()
    now = predict(rows, folder(method))
    names = [c for c in said if c.startswith("p_")]
    assert np.abs(said[names].to_numpy() - now[names].to_numpy()).max() < 1e-5
    sure = (said[names[0]] - said[names[1]]).abs() > 1e-5
    assert sure.any() and (said["prediction"] == now["prediction"])[sure].all()


@pytest.mark.parametrize("parent", ["finetune", "macular"])
@pytest.mark.parametrize("e", ["cls", "mean"])
def test_a_head_on_other_tokens_is_the_projects_class(done, folder, monkeypatch, parent, e):
    "No stock class reads them; the pipeline gives what the run gave"
    name = f"{parent}_{e}"
    monkeypatch.setitem(methods._records, name, methods[parent].derive(name, readings=Readings(e=e)))
    said, rows = predicted(done(name)), load("pawsx", "test", "de", WORLD).to_pandas()
    now = predict(rows, folder(name))
    names = [c for c in said if c.startswith("p_")]
    assert np.abs(said[names].to_numpy() - now[names].to_numpy()).max() < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(folder(name))
    assert type(model) is MacularForSequenceClassification and model.config.e == e
    assert (model.config.alpha, len(model.encoders)) == ((0.5, 2) if parent == "macular" else (None, 1))
    text = (folder(name) / "README.md").read_text()
    why = {"cls": "the first token", "mean": "the mean over tokens"}[e]
    assert "needs the package `macular`" in text and ("two encoders" if parent == "macular" else why) in text


@pytest.mark.parametrize("method", ONE_ENCODER)
def test_one_encoder_is_the_backbones_own_class(folder, method):
    config = read_json(folder(method) / "config.json")
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"] and config["id2label"] == {
        "0": "different",
        "1": "paraphrase",
    }


def test_two_encoders_are_a_class_of_the_auto_classes(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder("macular"))
    assert type(model) is MacularForSequenceClassification and type(model.config) is MacularConfig
    assert model.config.alpha == 0.5 and model.config.encoder.model_type == "xlm-roberta"


def trained(done, method, name, round):
    "The weights on disk"
    result = done(method)
    return load_file(
        result.folder.parent
        / "trainings"
        / result.values["trainings"][name]["key"]
        / f"round-{round}"
        / "net.safetensors"
    )


@pytest.mark.parametrize("task, head", [("pawsx", 0), ("xnli", 1)])
def test_stage_1_bit_for_bit_with_every_head(done, folder, task, head):
    there = load_file(folder("macular_nots", task=task) / "model.safetensors")
    here = trained(done, "macular_nots", "macular_nots", select_checkpoint(done("macular_nots")).round)
    assert (
        torch.equal(there["classifier.out_proj.weight"], here[f"heads.{head}.weight"])
        and len(there) == sum(n.startswith("encoder.") for n in here) + 2
    )
    assert all(
        torch.equal(there[n.removeprefix("encoder.body.model.")], w)
        for n, w in here.items()
        if n.startswith("encoder.")
    )


def test_stage_2_bit_for_bit(done, folder):
    there, result = load_file(folder("macular") / "model.safetensors"), done("macular")
    own = trained(done, "macular", "macular", select_checkpoint(result).round)
    f_m = trained(done, "macular", "macular_nots", result.values["trainings"]["macular_nots"]["round"])
    wanted = {f"encoder.{n.removeprefix('encoder.body.model.')}": w for n, w in own.items() if n.startswith("encoder.")}
    wanted |= {f"shared.{n.removeprefix('encoder.body.model.')}": w for n, w in f_m.items() if n.startswith("encoder.")}
    wanted |= {n: w for n, w in own.items() if n.startswith("head.")}
    assert toy.same(there, wanted)


@pytest.mark.parametrize("method", ["finetune", "macular"])
def test_saved_again_it_is_the_same(folder, method, tmp_path):
    first = AutoModelForSequenceClassification.from_pretrained(folder(method))
    first.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert toy.same(toy.state(first), toy.state(again)) and first.config.to_dict() | {
        "_name_or_path": ""
    } == again.config.to_dict() | {"_name_or_path": ""}
    ids = {"input_ids": torch.arange(4, 14)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(deepcopy(first)(**ids).logits, deepcopy(again)(**ids).logits)


def test_another_round_is_another_model(done, folder):
    rounds = {
        name: load_file(folder("finetune", selection=name) / "model.safetensors") for name in ("last", "averaged")
    }
    here = [trained(done, "finetune", "finetune", n) for n in (1, 2)]
    assert torch.equal(rounds["last"]["classifier.out_proj.bias"], here[1]["heads.0.bias"])
    assert torch.allclose(
        rounds["averaged"]["classifier.out_proj.bias"], (here[0]["heads.0.bias"] + here[1]["heads.0.bias"]) / 2
    )
    assert not torch.equal(rounds["last"]["classifier.out_proj.bias"], rounds["averaged"]["classifier.out_proj.bias"])


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("method", ["finetune", "macular"])
def test_any_backbone(done, tmp_path, kind, method):
    result = done(method, backbone=str(toy.backbone(kind)), max_length=32, rounds=1)
    now, said = (
        predict(load("pawsx", "test", "de", WORLD).to_pandas(), export(result, tmp_path / "model")),
        predicted(result),
    )
    assert np.abs(said["p_paraphrase"] - now["p_paraphrase"]).max() < 1e-5 and said["p_paraphrase"].std() > 0


# what the backbone's config.json says about outputs


def odd_backbone(folder, **said):
    "A backbone whose config.json was written for another use"
    shutil.copytree(toy.backbone("bert"), folder)
    config = read_json(folder / "config.json") | said
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def by_pipeline(folder, rows):
    "The probability of `paraphrase` by transformers' own pipeline"
    classify = pipeline("text-classification", str(folder), truncation=True, top_k=None)
    pairs = [{"text": a, "text_pair": b} for a, b in zip(rows["text_a"], rows["text_b"], strict=True)]
    scored = [{score["label"]: score["score"] for score in scores} for scores in classify(pairs)]
    assert all(abs(sum(p.values()) - 1) < 1e-5 for p in scored)
    return np.array([p["paraphrase"] for p in scored])


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("method", ["finetune", "macular_nots", "macular", "student"])
def test_probabilities_are_the_runs_whatever_the_backbones_problem_type(done, tmp_path, kind, method):
    backbone = odd_backbone(tmp_path / "backbone", problem_type=kind)
    settings = {"backbone": backbone, "max_length": 32, "rounds": 1}
    if method == "student":
        result = distill(done("finetune", **settings), lambda event, facts: None, out=str(tmp_path / "runs"))
    else:
        result = done(method, **settings)
    folder, rows = export(result, tmp_path / "model"), load("pawsx", "test", "de", WORLD)
    said = predicted(result)[: len(rows)]
    assert read_json(folder / "config.json")["problem_type"] == "single_label_classification"
    assert np.abs(by_pipeline(folder, rows) - said["p_paraphrase"]).max() < 1e-5 and said["p_paraphrase"].std() > 0


def test_an_older_export_that_kept_the_problem_type_is_predicted_with_probabilities(done, tmp_path):
    said, rows = predicted(done("finetune")), load("pawsx", "test", "de", WORLD).to_pandas()
    folder = export(done("finetune"), tmp_path / "model")
    config = read_json(folder / "config.json") | {"problem_type": "regression"}
    (folder / "config.json").write_text(json.dumps(config))
    assert np.abs(predict(rows, folder)["p_paraphrase"] - said["p_paraphrase"]).max() < 1e-5


@pytest.mark.parametrize("method", ["finetune", "macular"])
def test_a_backbone_that_returns_tuples_or_hidden_states(done, tmp_path, method):
    backbone = odd_backbone(tmp_path / "backbone", return_dict=False, output_hidden_states=True)
    result = done(method, backbone=backbone, max_length=32, rounds=1)
    folder = export(result, tmp_path / "model")
    rows = load("pawsx", "test", "de", WORLD)
    assert np.abs(by_pipeline(folder, rows) - predicted(result)["p_paraphrase"]).max() < 1e-5


# tools for transformers' models


@pytest.fixture(scope="module", params=toy.KINDS)
def two(request, tmp_path_factory):
    "The folder of an untrained model of two encoders, its tokenizer, and a batch"
    folder, words = tmp_path_factory.mktemp("two"), toy.tokenizer(request.param)
    encoder = AutoConfig.from_pretrained(toy.backbone(request.param))
    model = MacularForSequenceClassification(MacularConfig(encoder=encoder, alpha=0.3, num_labels=3))
    toy.redraw(model, "two").save_pretrained(folder)
    words.save_pretrained(folder)
    return folder, words, words([("the cat", "a dog is"), ("the", "dog")], return_tensors="pt", padding=True)


def opened(two, **options):
    return AutoModelForSequenceClassification.from_pretrained(two[0], **options).eval()


@torch.no_grad()
def test_outputs_are_those_of_both_encoders(two):
    model, batch = opened(two, attn_implementation="eager"), two[2]
    found = model(**batch, output_hidden_states=True, output_attentions=True)
    n, layers = batch["input_ids"].shape[1], 2
    assert [s.shape for s in found.hidden_states] == [(2, n, 32)] * (layers + 1)  # two encoders of width 16
    assert [a.shape for a in found.attentions] == [(2, 4, n, n)] * layers  # two encoders of two heads
    own = model.encoder(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(found.hidden_states[-1][..., 16:], own[-1])
    assert len(opened(two, output_hidden_states=True)(**batch).hidden_states) == layers + 1
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], found.logits)


@torch.no_grad()
def test_embeddings_in_place_of_ids(two):
    model, batch = opened(two), dict(two[2])
    logits = model(**batch).logits
    embedded = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.allclose(model(inputs_embeds=embedded, **batch).logits, logits, atol=1e-6)
    with pytest.raises(ValueError, match="inputs_embeds has width 16; 32 is needed, for two encoders"):
        model(inputs_embeds=embedded[..., :16], **batch)


def test_gradient_checkpointing_gives_the_same_gradients(two):
    model, found = opened(two).train(), []
    for switch in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
        switch()
        model.zero_grad()
        model(**two[2], labels=torch.tensor([0, 2])).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert toy.gap(*found) < 1e-6 and any(name.startswith("shared.") for name in found[0])


@torch.no_grad()
def test_more_tokens(two, tmp_path):
    model, size = opened(two), len(two[1]) + 2
    logits = model(**two[2]).logits
    model.resize_token_embeddings(size)
    assert model.get_input_embeddings().num_embeddings == size == model.config.encoder.vocab_size
    assert torch.equal(model(**two[2]).logits, logits)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(**two[2]).logits, logits, atol=1e-6)
    assert again(input_ids=torch.tensor([[size - 1]])).logits.isfinite().all()


def fitted(model, words, folder, **options):
    "HF's `Trainer` after four steps on twelve examples"
    examples = [{**words("the cat", "a dog"), "labels": i % 3} for i in range(12)]
    settings = {"max_steps": 4, "save_steps": 4, "learning_rate": 0.01, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=4, disable_tqdm=True, **settings | options)
    trainer = Trainer(model, arguments, train_dataset=examples, processing_class=words)
    trainer.train()
    return trainer, trainer.predict(examples).predictions


def test_hf_trainer_trains_and_reloads_it(two, tmp_path):
    before = opened(two)
    trainer, found = fitted(opened(two), two[1], tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=True)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    moved = {name.split(".")[0] for name, p in before.named_parameters() if not torch.equal(p, toy.state(again)[name])}
    assert moved == {"shared", "encoder", "head"}
    assert np.allclose(Trainer(again, trainer.args).predict(trainer.train_dataset).predictions, found, atol=1e-5)


def test_accumulated_batches_give_the_loss_of_one(two, tmp_path):
    "The model's loss is a mean; HF's `Trainer` must divide it by the number of portions"
    sizes = [{"per_device_train_batch_size": 12}, {"gradient_accumulation_steps": 3}]
    losses = []
    for i, size in enumerate(sizes):
        still = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "save_strategy": "no"}
        model = opened(two, **{"attn_implementation": "eager"})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        examples = [{**two[1]("the cat", "a dog"), "labels": n % 3} for n in range(12)]
        settings = {"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True} | still | size
        trainer = Trainer(
            model, TrainingArguments(str(tmp_path / str(i)), disable_tqdm=True, **settings), train_dataset=examples
        )
        trainer.train()
        losses.append(next(line["loss"] for line in trainer.state.log_history if "loss" in line))
    assert abs(losses[0] - losses[1]) < 1e-3


def test_adapters_of_peft(two, tmp_path):
    peft = pytest.importorskip("peft")
    layers = {"modernbert": ["Wqkv"], "deberta-v2": ["query_proj", "value_proj"]}
    model = opened(two)
    targets = layers.get(model.config.encoder.model_type, ["query", "value"])
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets, modules_to_save=["head"], r=4)
    adapted = peft.get_peft_model(model, lora)
    learned = {name.split(".")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert learned == {"shared", "encoder", "head"}
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable()
    before = toy.state(adapted)
    fitted(adapted, two[1], tmp_path / "trained", learning_rate=0.05)
    assert toy.gap(before, toy.state(adapted)) > 0.01
    adapted.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(opened(two), tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = adapted(**two[2]).logits
        assert torch.allclose(again(**two[2]).logits, logits, atol=1e-5)
        assert torch.allclose(again.merge_and_unload()(**two[2]).logits, logits, atol=1e-5)


def test_two_encoders_load_in_half_precision(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder("macular"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=torch.arange(4, 14)[None]).logits.dtype == torch.bfloat16


def test_two_encoders_learn_on(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder("macular"))
    loss = model(input_ids=torch.arange(4, 14)[None], labels=torch.tensor([1])).loss
    loss.backward()
    assert (
        all(p.grad is not None for p in model.head.parameters())
        and model.shared.get_input_embeddings().weight.grad is not None
    )


# where this package is not

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "macular": raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
try: import macular
except ImportError: pass
else: raise SystemExit("the block does not hold")
"""


def elsewhere(code, cwd):
    "Run code in a process that cannot import this package"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_one_encoder_loads_without_this_package(done, folder):
    path, said = folder("cosda_ml"), predicted(done("cosda_ml"))
    rows = load("pawsx", "test", "de", WORLD)
    pairs = [{"text": a, "text_pair": b} for a, b in zip(rows["text_a"][:20], rows["text_b"][:20])]
    asked = (
        f"import json\nfrom transformers import pipeline\n"
        f"print(json.dumps(pipeline('text-classification', {path.name!r}, truncation=True)({pairs!r})))"
    )
    found = elsewhere(asked, path.parent)
    assert found.returncode == 0, found.stderr
    answers = json.loads(found.stdout.splitlines()[-1])
    assert [a["label"] for a in answers] == list(said["prediction"][:20])
    assert np.allclose([a["score"] for a in answers], said[["p_different", "p_paraphrase"]].max(axis=1)[:20], atol=1e-5)


def test_two_encoders_do_not_and_say_so(folder):
    found = elsewhere(
        "from transformers import AutoModelForSequenceClassification as A\nA.from_pretrained('macular')",
        folder("macular").parent,
    )
    assert found.returncode == 1 and "macular" in found.stderr


# the pipeline


@pytest.mark.parametrize("method", ["finetune", "macular"])
def test_the_pipeline_gives_names(folder, method):
    classify = pipeline("text-classification", str(folder(method)), truncation=True)
    [answer] = classify([{"text": "the dog sleeps", "text_pair": "a dog is asleep"}])
    assert answer["label"] in ("different", "paraphrase") and 0.5 <= answer["score"] <= 1
    [every] = classify([{"text": "the dog sleeps", "text_pair": "a dog is asleep"}], top_k=None)
    assert {one["label"] for one in every} == {"different", "paraphrase"} and sum(
        one["score"] for one in every
    ) == pytest.approx(1)


def test_markup_in_a_text_is_text(done, tmp_path):
    "As in training: a text cannot end itself"
    path = export(done("finetune", backbone=str(toy.backbone("bert")), max_length=32, rounds=1), tmp_path / "model")
    tokenizer, pair = AutoTokenizer.from_pretrained(path), ("the [SEP] dog", "a [CLS] cat")
    ids = tokenizer(*pair)["input_ids"]
    assert ids == tokenize(toy.tokenizer("bert"), [[t] for t in pair], 32).ids.tolist()
    assert ids.count(tokenizer.sep_token_id) == 2 and ids.count(tokenizer.cls_token_id) == 1


def test_a_pair_is_as_long_as_in_training(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder("finetune"))
    assert len(tokenizer("dog " * 500, "cat " * 500, truncation=True)["input_ids"]) == 64


# tables


def test_predict_keeps_the_table(folder):
    frame = pd.DataFrame(
        {
            "first": ["the dog sleeps", "a red house " * 30, "water"],
            "second": ["a dog", "b", "wine"],
            "other": [1, 2, 3],
        },
        index=[7, 5, 9],
    )
    found = predict(frame, folder("finetune"), ("first", "second"), batch_size=2)
    assert list(found.index) == [7, 5, 9] and list(found["other"]) == [1, 2, 3] and "prediction" not in frame
    alone = [predict(frame.iloc[[i]], folder("finetune"), ("first", "second"))["p_paraphrase"].item() for i in range(3)]
    assert np.allclose(found["p_paraphrase"], alone, atol=1e-6) and len(set(alone)) == 3


def test_predict_refuses_what_is_no_text(folder):
    with pytest.raises(DataError, match="1 of 4 texts.*row 1"):
        predict(pd.DataFrame({"text_a": ["a", None], "text_b": ["b", "c"]}), folder("finetune"))
    with pytest.raises(ParameterError, match="Did you mean 'text_b'"):
        predict(
            pd.DataFrame({"text_a": ["a"], "text_bb": ["b"], "text_b": ["c"]}),
            folder("finetune"),
            ("text_a", "text_bx"),
        )


def test_predict_of_nothing_is_nothing(folder):
    found = predict(pd.DataFrame({"text_a": [], "text_b": []}), folder("finetune"))
    assert len(found) == 0 and {"prediction", "p_different", "p_paraphrase"} <= set(found)


# the folder


def test_no_code_and_no_pickle(folder):
    for method in ("finetune", "macular"):
        names = {p.name for p in folder(method).rglob("*") if p.is_file()}
        assert not any(name.endswith((".py", ".bin", ".pt", ".pkl")) for name in names) and "model.safetensors" in names
        assert "auto_map" not in (folder(method) / "config.json").read_text()
        assert verify(folder(method))


def test_no_path_of_this_machine(done, folder):
    for method in ("finetune", "macular"):
        text = "".join(p.read_text() for p in folder(method).rglob("*") if p.suffix in (".json", ".md", ".yaml"))
        for place in (done(method).folder.parent, Path(toy.__file__).parents[1], Path.home()):
            assert str(place) not in text


def test_readable_as_the_umask_says(done, tmp_path):
    before = os.umask(0o022)
    try:
        path = export(done("finetune"), tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir() if p.is_file()} == {0o644}


def test_another_folder_is_never_replaced(done, folder, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(StorageError, match="holds something else"):
        export(done("finetune"), tmp_path / "letters")
    assert (tmp_path / "letters" / "mother.txt").read_text() == "dear"
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file"):
        export(done("finetune"), tmp_path / "file")
    export(done("finetune"), tmp_path / "model")
    export(done("cosda_ml"), tmp_path / "model")
    assert toy.same(
        load_file(tmp_path / "model" / "model.safetensors"), load_file(folder("cosda_ml") / "model.safetensors")
    )


@pytest.mark.parametrize(
    "name, text", [("notes.md", "keep me"), (".git/HEAD", "ref: refs/heads/main"), ("README.md", "# My own card")]
)
def test_what_somebody_added_to_an_export_is_not_lost(done, tmp_path, name, text):
    model = export(done("finetune"), tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(text)
    with pytest.raises(StorageError, match=f"{name}.*It is not replaced; move it away"):
        export(done("cosda_ml"), model)
    assert (model / name).read_text() == text


# the card


def changed(result, folder, **values):
    "A finished run whose record says something else"
    shutil.copytree(result.folder, folder / result.folder.name)
    (folder / "trainings").symlink_to(result.folder.parent / "trainings")
    write_json(folder / result.folder.name / "result.json", result.values | values)
    return folder / result.folder.name


ANSWER = r"\[\{'label': '(different|paraphrase)', 'score': 0\.\d+\}\]"


def example(folder, method):
    "The code of a model card, its last value printed"
    [code] = re.findall(r"```python\n(.*?)```", (folder(method) / "README.md").read_text(), re.S)
    *lines, last = code.strip().split("\n")
    assert ("macular" in lines[0]) == (method == "macular")
    return "\n".join([*lines, f"print({last})"])


def test_the_example_of_the_card_runs_as_it_stands(folder, monkeypatch, capsys):
    found = elsewhere(example(folder, "finetune"), folder("finetune").parent)
    assert found.returncode == 0 and re.search(ANSWER, found.stdout), found.stderr
    monkeypatch.chdir(folder("macular").parent)
    exec(example(folder, "macular"), {})
    assert re.search(ANSWER, capsys.readouterr().out)


def test_the_hub_can_read_the_card(done, folder):
    data = ModelCard.load(folder("macular") / "README.md").data
    assert data.license == "apache-2.0" or data.license_name == "as-its-sources"
    assert data.language[0] == "en" and "de" in data.language and data.pipeline_tag == "text-classification"
    scored = done("macular").accuracy["pawsx"]
    assert {r.dataset_config: r.metric_value for r in data.eval_results} == {
        lang: round(v, 2) for lang, v in scored.items()
    }


def test_the_table_is_the_runs_with_wilsons_interval(done):
    result = done("finetune")
    for row in _scores(select_checkpoint(result)):
        answers = predicted(result, row["language"])
        k, n, z = (answers["label"] == answers["prediction"]).sum(), len(answers), 1.959963984540054
        middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
        assert (row["items"], row["accuracy"]) == (n, pytest.approx(100 * k / n))
        assert (row["low"], row["high"]) == (pytest.approx(100 * (middle - half)), pytest.approx(100 * (middle + half)))


def test_another_round_is_scored_as_such(done, folder):
    text = (folder("finetune", selection="averaged") / "README.md").read_text()
    assert "The run scored another round; the same job with selections=averaged scores this one." in text
    assert "| de |" not in text
    asked = done("finetune", selections="averaged,all_dev_oracle")
    said = asked.values["selections"]["averaged"]["accuracy"]["pawsx"]["de"]
    text = card(select_checkpoint(asked, selection="averaged"), "model")
    assert f"| de | 60 | {said:.1f} |" in text and "chosen by `averaged`" in text


def test_the_oracle_needs_dev_scores(done):
    asked = done("finetune", selections="averaged,all_dev_oracle")
    oracle = asked.values["selections"]["all_dev_oracle"]["round"]
    assert select_checkpoint(asked, selection="all_dev_oracle").round == oracle
    with pytest.raises(ParameterError, match="the same job with selections=all_dev_oracle scores it"):
        select_checkpoint(done("finetune"), selection="all_dev_oracle")


def test_another_head_has_no_scores_of_the_runs_task(folder):
    text = (folder("macular_nots", task="xnli") / "README.md").read_text()
    assert (
        "The run scored another task. Dev accuracy in `en`:" in text
        and "| de |" not in text
        and "`contradiction`" in text
    )


NC = {"file": "muse/en-de.txt", "lang": "de", "sha256": "0", "licence": "CC BY-NC 4.0", "noncommercial": True}


def test_non_commercial_is_said(done, folder, tmp_path):
    assert "non-commercial" not in (folder("cosda_ml") / "README.md").read_text().lower()
    run = changed(done("cosda_ml"), tmp_path, origins=[*done("cosda_ml").values["origins"], NC])
    card = ModelCard.load(export(run, tmp_path / "model") / "README.md")
    assert "**Non-commercial**" in card.text and "CC BY-NC 4.0" in card.text
    assert (card.data.license, card.data.license_name) == ("other", "non-commercial")


@pytest.mark.parametrize("source, revision", [("google-research-datasets/paws-x@abc123", "abc123"), ("PAWS-X", None)])
def test_a_public_benchmark_has_results_of_its_own(done, folder, tmp_path, source, revision):
    assert not (folder("finetune") / ".eval_results").exists()
    run = changed(
        done("finetune"),
        tmp_path,
        origins=[{"file": "x", "sha256": "0", "source": source, "licence": "free", "noncommercial": False}],
    )
    path = export(run, tmp_path / "model") / ".eval_results" / "pawsx.yaml"
    found = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert {e.task_id: e.value for e in found} == {
        lang: round(v, 2) for lang, v in done("finetune").accuracy["pawsx"].items()
    }
    assert {(e.dataset_id, e.dataset_revision) for e in found} == {("google-research-datasets/paws-x", revision)}


def test_other_seeds_are_counted(done, tmp_path):
    one, two, other = done("finetune"), done("finetune", seed=5), done("finetune", rounds=1)
    assert set(_seeds_of(select_checkpoint(one))) == {one.folder, two.folder} and _seeds_of(
        select_checkpoint(other)
    ) != _seeds_of(select_checkpoint(one))
    text = (export(two, tmp_path / "model") / "README.md").read_text()
    means = [sum(r.accuracy["pawsx"].values()) / 2 for r in (one, two)]
    assert (
        f"It is seed 5; the mean over seeds is {sum(means) / 2:.1f} ± {abs(means[0] - means[1]) / 2**0.5:.1f} (2 seeds)"
        in text
    )


def test_limits_name_languages_without_a_dictionary(done):
    assert "There was no dictionary for sw, ur." in _limits(select_checkpoint(done("cosda_ml", task="xnli", rounds=1)))
    assert not any("dictionary" in line for line in _limits(select_checkpoint(done("finetune"))))


# the command line


def test_the_command_exports(done, folder, tmp_path, capfd):
    assert main(["export", str(done("macular").folder), str(tmp_path / "model")]) == 0
    [said] = [line for line in capfd.readouterr().out.splitlines() if "pipeline(" in line]
    assert said.startswith("import macular.deploy.huggingface; ") and str(tmp_path / "model") in said
    assert toy.same(
        load_file(tmp_path / "model" / "model.safetensors"), load_file(folder("macular") / "model.safetensors")
    )
    assert main(["export", str(done("macular_nots").folder), str(tmp_path / "model"), "--task", "xnli"]) == 0
    assert (
        "import" not in capfd.readouterr().out
        and read_json(tmp_path / "model" / "config.json")["id2label"]["2"] == "contradiction"
    )


def test_the_command_ends_with_the_code_of_what_went_wrong(done, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    finished = str(done("finetune").folder)
    assert [
        main(["export", finished, str(tmp_path / "model"), "--selection", "best"]),
        main(["export", str(tmp_path), str(tmp_path / "model")]),
        main(["export", finished, str(tmp_path / "model"), "--backbone", "/nowhere"]),
        main(["export", finished, str(tmp_path / "full")]),
    ] == [2, 3, 4, 5]


# what is refused


@pytest.mark.parametrize(
    "method, why", [("prompt", "words at a gap"), ("syn", "dependency tree"), ("finetune_x2", "two trainings")]
)
def test_a_row_that_is_no_classifier_is_refused(done, tmp_path, method, why):
    with pytest.raises(ParameterError, match=why):
        export(done(method, rounds=1), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_names_that_are_not_there(done, tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        export(tmp_path, tmp_path / "model")
    with pytest.raises(ParameterError, match="Did you mean 'last'"):
        export(done("finetune"), tmp_path / "model", selection="lst")
    with pytest.raises(ParameterError, match="did not learn it"):
        export(done("macular_nots"), tmp_path / "model", task="qam")


@pytest.fixture
def copied(done, tmp_path):
    "A run and its training that a test may spoil"
    result = done("finetune")
    key = result.values["trainings"]["finetune"]["key"]
    for name in (result.folder.name, f"trainings/{key}"):
        shutil.copytree(result.folder.parent / name, tmp_path / name)
    return tmp_path / result.folder.name, tmp_path / "trainings" / key


def test_a_moved_run_is_exported_as_well(copied, folder, tmp_path):
    path = export(copied[0], tmp_path / "model")
    assert toy.same(load_file(path / "model.safetensors"), load_file(folder("finetune") / "model.safetensors"))


def test_a_flipped_bit_is_noticed(copied, tmp_path):
    weights = next(copied[1].glob(f"round-{select_checkpoint(copied[0]).round}/net.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StorageError, match="does not match its manifest"):
        export(copied[0], tmp_path / "model")


def test_lost_trainings_are_named(copied, tmp_path):
    shutil.rmtree(copied[1])
    with pytest.raises(DataError, match="Runs and their trainings go together"):
        export(copied[0], tmp_path / "model")


def test_another_backbone_is_refused(copied, tmp_path):
    with pytest.raises(DataError, match="is not the backbone of the run"):
        export(copied[0], tmp_path / "model", backbone="mini-bert")


def test_a_task_with_other_labels_is_refused(copied, tmp_path):
    path = copied[0] / "predictions.parquet"
    pd.read_parquet(path).rename(columns={"p_different": "p_unequal"}).to_parquet(path)
    with pytest.raises(DataError, match="unequal, paraphrase.*now has different, paraphrase"):
        export(copied[0], tmp_path / "model")


def test_a_name_below_runs_is_found(copied, monkeypatch, tmp_path):
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "runs").mkdir()
    shutil.copytree(copied[0], tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert result_of("mine").folder == tmp_path / "runs" / "mine"
