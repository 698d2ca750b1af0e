"""Adapters of tied embeddings, and tensors that peft saves under two names: read as peft runs them, said, kept."""

import warnings

import numpy as np
import peft
import pytest
import torch

import adaptrix
from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.extras import assert_as_under_peft, classifier, saved, tied
from tests.helpers.families import tiny_model
from tests.helpers.heads import builder
from tests.helpers.peft_models import deltas, load, logits, rewrite, round_trip, same_tensors, save, trained, weights

TIES = {"ensure_weight_tying": True}
EMBEDDING = {"target_modules": ["q_proj", "embed_tokens"]} | TIES
HEAD = "base_model.model.lm_head.lora_"
WAYS = {
    "embedding": ("llama", EMBEDDING),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]} | TIES),
    "another rank": ("qwen3", EMBEDDING | {"rank_pattern": {"embed_tokens": 6}, "alpha_pattern": {"lm_head": 2}}),
    "another rank under rsLoRA": ("opt", EMBEDDING | {"rank_pattern": {"embed_tokens": 2}, "use_rslora": True}),
    "regex": ("gemma2", {"target_modules": ".*(q_proj|embed_tokens)"} | TIES),
}


def errors(report):
    return [(p.code, p.where) for p in report.problems if p.severity == "error"]


def as_attached(model, folder, wanted):
    """Whether a live model with the adapter answers as it should."""
    with attach(model, {"x": folder}) as session, session.use("x"):
        return torch.allclose(logits(model), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_head_that_follows_its_embedding(way, tmp_path):
    family, keys = WAYS[way]
    model = tied(family, tie=True)
    adapted = saved(model, tmp_path / "a", **keys)
    sites = assert_as_under_peft(model, tmp_path / "a", adapted)
    assert {"embed", "head"} <= sites.keys()


def test_rounded_factors_stay_tied(tmp_path):
    adapter = save(tmp_path, build=builder("llama", tie=True), **EMBEDDING)
    out = adaptrix.convert(adapter.folder, tmp_path / "out", "peft", adapter.base, dtype="BF16")
    assert errors(adaptrix.check(out, adapter.base)) == []
    torch.testing.assert_close(logits(load(out, adapter.build)), adapter.logits, rtol=0, atol=0.05)


def test_recompressed_factors_are_tied_no_more(tmp_path):
    """peft would load those of the head into the embedding's place."""
    adapter = save(tmp_path, build=builder("llama", tie=True), **EMBEDDING)
    out = adaptrix.convert(adapter.folder, tmp_path / "out", "peft", adapter.base, layers="all", rank=2, prune=True)
    assert not peft.PeftConfig.from_pretrained(out).ensure_weight_tying
    model = load(out, adapter.build)
    for path, delta in deltas(model).items():
        U, s, V = np.linalg.svd(adapter.deltas[path])
        np.testing.assert_allclose(delta, U[:, :2] * s[:2] @ V[:2], rtol=1e-3, atol=1e-5, err_msg=path)
    assert as_attached(adapter.build(), out, logits(model))


def test_a_head_with_other_factors_than_its_embedding(tmp_path):
    adapter = save(tmp_path, build=builder("llama", tie=True), **EMBEDDING)
    rewrite(adapter.folder, lambda ts: ts | {f"{HEAD}A.weight": ts[f"{HEAD}A.weight"] + 1})
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == [("tied", "lm_head")]
    rewrite(adapter.folder, ensure_weight_tying=False, target_modules=["q_proj", "embed_tokens", "lm_head"])
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == []


def test_a_head_of_its_own_where_the_base_ties_nothing(tmp_path):
    """peft ties nothing on such a base, whatever the config says."""
    targets = ["q_proj", "embed_tokens", "lm_head"]
    adapter = save(tmp_path, build=builder("llama", tie=False), target_modules=targets, **TIES)
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == []
    same_tensors(adapter.tensors, weights(round_trip(adapter, tmp_path)))


@pytest.mark.parametrize("family", ["bloom", "falcon", "gpt2", "gpt_neox"])
def test_a_head_that_peft_saves_and_then_ignores(family, tmp_path):
    """On loading, peft knows the tied by the names embed_tokens and lm_head alone; and it has taken out the latter."""
    module = {"gpt2": "c_attn"}.get(family, "query_key_value")
    build = builder(family, tie=True)
    adapter = save(tmp_path, family, build=build, target_modules=[module, "lm_head"], **TIES)
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == [("config-mismatch", "lm_head")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = logits(peft.PeftModel.from_pretrained(build(), adapter.folder).eval())
    assert not torch.allclose(lost, adapter.logits, atol=1e-4)
    rewrite(adapter.folder, target_modules=[*adapter.config["target_modules"], "lm_head"])  # what the problem advises
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == []
    back = round_trip(adapter, tmp_path)
    same_tensors(adapter.tensors, weights(back))
    torch.testing.assert_close(logits(load(back, build)), adapter.logits, rtol=1e-5, atol=1e-6)


# -- tensors under two names -------------------------------------------------------------------------------------

COPY = "base_model.model.classifier.modules_to_save."


def copies(report):
    return [(p.severity, p.found) for p in report.problems if p.code == "duplicate"]


def biased_head(folder, family="roberta"):
    keys = {"task_type": "SEQ_CLS", "target_modules": ["query"], "bias": "all"}
    return save(folder, family, build=builder(family, task="SEQ_CLS"), **keys)


def test_biases_of_a_head_that_peft_saves_twice(tmp_path):
    adapter = biased_head(tmp_path)
    assert {f"{COPY}default.dense.bias", f"{COPY}default.out_proj.bias"} <= adapter.tensors.keys()
    report = adaptrix.check(adapter.folder, adapter.base)
    [(severity, found)] = copies(report)
    assert report.ok
    assert severity == "note"
    assert found.startswith("2 tensors are there twice")
    assert "'base_model.model.classifier.dense.bias'" in found
    same_tensors(adapter.tensors, weights(round_trip(adapter, tmp_path)))


@pytest.mark.parametrize("name", ["default", "math"])
def test_of_two_that_differ_peft_reads_the_plain_one(name, tmp_path):
    adapter = biased_head(tmp_path)
    rewrite(
        adapter.folder,
        lambda ts: {
            key.replace(f"{COPY}default", f"{COPY}{name}"): tensor + 1 if key.startswith(COPY) else tensor
            for key, tensor in ts.items()
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(adapter.build(), adapter.folder).eval()
    assert torch.equal(logits(adapted), adapter.logits)
    [(severity, found)] = copies(adaptrix.check(adapter.folder, adapter.base))
    assert severity == "warning"
    assert found.startswith("2 tensors are there under two names and differ")
    with pytest.warns(adaptrix.AdaptrixWarning, match="under two names"):
        same_tensors(adapter.tensors, weights(round_trip(adapter, tmp_path)))
    assert as_attached(adapter.build(), adapter.folder, adapter.logits)


def test_a_classifier_of_two_layers_among_trained_biases(tmp_path):
    model = trained(classifier("roberta")).eval()
    keys = {"bias": "all", "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    adapted = saved(model, tmp_path, target_modules=["query", "value"], **keys)
    assert_as_under_peft(model, tmp_path, adapted)


# -- trained tokens of a head ------------------------------------------------------------------------------------


def test_trained_tokens_of_a_head_are_rows_of_its_weight(tmp_path):
    tokens = {"embed_tokens": [2, 3], "lm_head": [4, 5, 6]}
    adapter = save(tmp_path, target_modules=["q_proj"], trainable_token_indices=tokens)
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == []
    same_tensors(adapter.tensors, weights(round_trip(adapter, tmp_path)))
    key = "lm_head.token_adapter.trainable_tokens_delta"
    rewrite(adapter.folder, lambda ts: ts | {f"base_model.model.{key}": torch.ones(3, 67)})
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == [("shape", key)]


def test_tokens_of_a_tied_head_are_there_once_if_they_are_the_embeddings(tmp_path):
    both = {"word_embeddings": [2, 3], "vocab_projector": [2, 3]}
    build = builder("distilbert", tie=True)
    adapter = save(tmp_path, build=build, target_modules=["q_lin"], trainable_token_indices=both)
    assert not [key for key in adapter.tensors if "vocab_projector" in key]
    assert errors(adaptrix.check(adapter.folder, adapter.base)) == []
    rewrite(adapter.folder, trainable_token_indices=both | {"vocab_projector": [2, 4]})
    assert [code for code, _ in errors(adaptrix.check(adapter.folder, adapter.base))] == ["adapter-incomplete"]


def test_attaching_trained_tokens_is_refused_by_name(tmp_path):
    adapter = save(tmp_path, target_modules=["q_proj"], trainable_token_indices={"lm_head": [4, 5]})
    with pytest.raises(RefusedError, match="trained rows of an embedding"):
        attach(tiny_model("llama"), {"x": adapter.folder})


def test_the_factors_of_a_tied_head_act_with_the_rank_of_the_config(tmp_path):
    adapter = save(tmp_path, build=builder("llama", tie=True), **EMBEDDING, rank_pattern={"embed_tokens": 6})
    [head] = [d for t, d in adaptrix.load(adapter.folder).deltas.items() if t.path == "lm_head"]
    assert head.rank == 6
    assert head.scale == pytest.approx(7 / 3)
    np.testing.assert_allclose(head.dense(), adapter.deltas["lm_head"], rtol=1e-5, atol=1e-6)
