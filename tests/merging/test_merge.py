"""Merging, with peft's merge_and_unload as the judge: equal bits wherever peft rounds once."""

import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adaptrix
from adaptrix.architecture import Site
from adaptrix.architecture.layout import role_rows
from adaptrix.base.checkpoint import open_base
from adaptrix.base.sites import Term
from adaptrix.delta import LowRank, split
from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.merging import product
from adaptrix.merging.draft import settle
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import make_plan
from adaptrix.results import CheckReport
from adaptrix.tensor import Tensor
from tests.helpers.families import FAMILIES, tiny_config, tiny_model
from tests.helpers.merge_models import as_torch, assert_equal_bits, loaded, merge, pair, tensors
from tests.helpers.peft_models import PARAMETERS, everything, weights
from tests.helpers.sampling import sampled

VARIANTS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "bias": {"lora_bias": True}}
#: families whose linear layers have biases, all of them
BIASED = {"bert", "bloom", "distilbert", "gpt2", "gpt_neox", "opt", "roberta"}
CASES = [(f, v) for f in FAMILIES for v in VARIANTS if v != "bias" or f in BIASED]
#: their wrapper of a router's parameter has neither DoRA nor biases
CASES = [case for case in CASES if case not in {("qwen3_moe", "dora"), ("qwen3_moe", "bias")}]


@pytest.mark.parametrize(("family", "variant"), sampled(CASES))
def test_equal_bits_to_peft(family, variant, tmp_path):
    """In bf16, where it shows that ΔW is not rounded on its own."""
    names = ["q_proj", "o_proj"] if family == "qwen3_moe" else None  # peft rounds the ΔW of experts first
    made = pair(tmp_path, family, dtype=torch.bfloat16, shard="20KB", targets=names, **VARIANTS[variant])
    done = made.merge(tmp_path / "out")
    assert done.changed > 0
    assert_equal_bits(tmp_path / "out", made)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_bits_to_peft_in_fp32(variant, tmp_path):
    made = pair(tmp_path, "gpt2", **VARIANTS[variant])
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_mixed_ranks_and_alphas(dtype, tmp_path):
    keys = everything("gpt2", tiny_model("gpt2"))
    made = pair(tmp_path, "gpt2", dtype=dtype, targets=keys.pop("target_modules"), **keys)
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_pieces_of_a_large_weight_are_what_the_whole_would_be(turned, dora, monkeypatch):
    torch.manual_seed(0)
    out, inp, rank = (300, 517, 5) if not turned else (517, 300, 5)
    W, A, B, m = torch.randn(out, inp).bfloat16(), torch.randn(rank, inp), torch.randn(out, rank), torch.rand(out)
    delta = LowRank(stored(A), stored(B), alpha=11.0, magnitude=stored(m) if dora else None)
    own = W.T.contiguous() if turned else W
    kept = Tensor("BF16", tuple(own.shape), own.view(torch.uint8).numpy().tobytes())
    sites = []
    monkeypatch.setattr(product, "PIECE", 100)
    for piece in product.pieces(kept, TensorChange(terms=(Term(Site(0, "q"), delta),), turned=turned), "BF16", "here"):
        sites.append(bytes(piece))  # noqa: PERF401  # a piece is void when the next is there
    whole = W + B @ A * (11 / 5)
    whole = m[:, None] / torch.linalg.norm(whole, dim=1, keepdim=True) * whole if dora else whole
    wanted = (whole.T if turned else whole).bfloat16().contiguous()
    assert len(sites) == (1 if turned and dora else len(own) // 64)
    if turned and dora:  # a norm across rows may be summed in another order
        torch.testing.assert_close(as_torch(Tensor("BF16", kept.shape, b"".join(sites))), wanted, rtol=1e-2, atol=0)
    else:
        assert b"".join(sites) == wanted.view(torch.uint8).numpy().tobytes()


def stored(tensor):
    return Tensor.of(tensor.numpy())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_as_peft_adds_them(family, tmp_path):
    keys = {"target_parameters": PARAMETERS[family], "rank_pattern": {"down_proj": 2}}
    made = pair(tmp_path, family, targets=["q_proj"], **keys)
    done = made.merge(tmp_path / "out")
    wanted = made.peft_merged()
    found = loaded(tmp_path / "out", made.model.get_base_model()).state_dict()
    assert done.changed > len(wanted) // 4
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_experts_that_the_base_stacks(apart, tmp_path):
    """The base as transformers 5 holds it in memory; the adapter stacked likewise, or one delta an expert."""
    made = pair(tmp_path, "qwen3_moe", targets=["q_proj"], target_parameters=PARAMETERS["qwen3_moe"])
    wanted = made.peft_merged()
    for file in made.base.glob("*.safetensors"):
        file.unlink()
    plain = tiny_model("qwen3_moe").state_dict()
    safetensors_file.write(made.base / "model.safetensors", {n: stored(t) for n, t in plain.items()}, {"format": "pt"})
    bound = Pipeline().bind(adaptrix.load(made.adapter), str(made.base))
    places = [(site, place, delta) for site, delta in bound.deltas.items() for place, delta in by_expert(site, delta)]
    if apart:
        deltas = {place: delta for _, place, delta in places}
        targets = {place: bound.targets[site] for site, place, _ in places}
        bound = replace(bound, deltas=MappingProxyType(deltas), targets=MappingProxyType(targets))
    base = open_base(made.base, "base", json.loads((made.base / "config.json").read_text()))
    made_draft = settle(make_plan(bound, "all"), base, CheckReport("experts", ()))
    write(made_draft, str(tmp_path / "out"), MergeOptions())
    found = tensors(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(as_torch(tensor), wanted[name], rtol=1e-5, atol=1e-6)


def by_expert(site, delta):
    """A stacked delta as one of each expert; another as it is."""
    if delta.experts is None:
        return [(site, delta)]
    pairs = [(Tensor.of(A.astype(np.float32)), Tensor.of(B.astype(np.float32))) for A, B in delta.factors()]
    return [(replace(site, expert=e), LowRank(A, B, alpha=delta.alpha)) for e, (A, B) in enumerate(pairs)]


def test_embeddings_and_heads_that_are_two(tmp_path):
    build = lambda: tiny_model("llama")  # noqa: E731
    for number, keys in enumerate(({}, {"use_dora": True})):
        made = pair(tmp_path / str(number), build=build, targets=["embed_tokens", "lm_head", "k_proj"], **keys)
        assert made.model.config.tie_word_embeddings is False
        made.merge(tmp_path / str(number) / "out")
        assert_equal_bits(tmp_path / str(number) / "out", made)


def test_trained_tokens_and_saved_modules(tmp_path):
    keys = {"trainable_token_indices": {"embed_tokens": [5, 2, 66]}, "modules_to_save": ["lm_head", "norm"]}
    made = pair(tmp_path, targets=["v_proj"], **keys)
    done = made.merge(tmp_path / "out")
    assert done.changed == 3 + 2 + 7  # v, embedding and head, the norms of layers and the last
    assert_equal_bits(tmp_path / "out", made)


def test_biases_that_were_trained_along(tmp_path):
    made = pair(tmp_path, "gpt2", targets=["c_attn"], bias="lora_only")
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


def test_a_module_saved_in_fp32_is_rounded_to_the_base_once(tmp_path):
    made = pair(tmp_path, dtype=torch.bfloat16, targets=["v_proj"], modules_to_save=["lm_head"])
    saved = tensors(made.adapter)["base_model.model.lm_head.weight"]
    made.merge(tmp_path / "out")
    assert torch.equal(as_torch(tensors(tmp_path / "out")["lm_head.weight"]), as_torch(saved).bfloat16())


def test_what_is_untouched_is_the_same_bytes_in_the_same_shards(tmp_path):
    made = pair(tmp_path, dtype=torch.bfloat16, shard="20KB", targets=["o_proj"])
    done = made.merge(tmp_path / "out")
    before, after = ({p.name: p for p in folder.glob("*.safetensors")} for folder in (made.base, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert len(before) > 2
    for name in before:
        (old, _), (new, metadata) = (safetensors_file.read(files[name]) for files in (before, after))
        assert list(old) == list(new)
        assert metadata == {"format": "pt"}
        changed = {key for key in old if old[key].tobytes() != new[key].tobytes()}
        assert changed == {key for key in old if "o_proj" in key}
    assert done.changed == 3
    indexes = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (made.base, tmp_path / "out")]
    assert indexes[0] == indexes[1]


def test_a_single_file_stays_one_and_strays_stay_behind(tmp_path):
    made = pair(tmp_path, targets=["o_proj"])
    strays = ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "README.md", "model.gguf")
    carried = ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "merges.txt", "chat_template.jinja")
    for name in (*strays, *carried):
        (made.base / name).write_text(f'{{"{name}": 1}}')
    made.merge(tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*carried, "config.json", "generation_config.json", "model.safetensors", "adaptrix_merge.json"}
    for name in (*carried, "config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (made.base / name).read_bytes()


def test_the_record_names_what_was_merged_and_no_path(tmp_path):
    made = pair(tmp_path, targets=["o_proj"])
    made.merge(tmp_path / "out", layers="middle")
    text = (tmp_path / "out" / "adaptrix_merge.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert record["base"]["model"] == "base"
    assert record["plan"] == {"policy": "middle", "layers": {"layers": [1]}}
    assert len(record["adapter"]["files"]["adapter_model.safetensors"]) == 64


def test_equal_input_gives_equal_bytes(tmp_path):
    made = pair(tmp_path, shard="20KB")
    for name in ("one", "two"):
        made.merge(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_prefix_that_the_base_does_not_have(tmp_path):
    """Old GPT-2 files name their tensors as the model without its head does."""
    made = pair(tmp_path, "gpt2")
    file = made.base / "model.safetensors"
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors(made.base).items()}
    held = {name: type(tensor)(tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in plain.items()}
    file.unlink()
    safetensors_file.write(file, held, {"format": "pt"})
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


@pytest.mark.parametrize("layers", [None, "all", "1-2", "energy:1"])
def test_an_injection_file_does_what_attaching_it_does(layers, tmp_path):
    made = pair(tmp_path, "gpt2", targets=["c_attn", "c_fc"], r=4)
    file = adaptrix.convert(made.adapter, tmp_path / "x.adaptrix.safetensors", base=made.base, layers="0,2", rank=2)
    merge(file, made.base, tmp_path / "out", layers=layers)
    model = made.model.unload()
    tokens = torch.arange(20)[None]
    with torch.no_grad(), adaptrix.attach(model, {"x": file}, layers=layers) as session:
        session.activate("x")
        attached = model(input_ids=tokens).logits
        merged = loaded(tmp_path / "out", model)(input_ids=tokens).logits
    torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-4)


def test_parts_of_a_fused_weight(tmp_path):
    """A Phi-3 before its projections were fused, on one after, and the other way round."""
    made = pair(tmp_path, "phi3", targets=["qkv_proj"])
    adapter = adaptrix.load(made.adapter)
    bound = Pipeline().bind(adapter, str(made.base))
    rows = role_rows(bound.architecture.roles["qkv"], bound.dims)
    parts, targets = {}, {}
    for site, delta in bound.deltas.items():
        for part, piece in split(delta, rows).items():
            place = Site(site.layer, site.role, part)
            parts[place], targets[place] = piece, bound.targets[site]
    apart = replace(bound, deltas=MappingProxyType(parts), targets=MappingProxyType(targets))
    base = open_base(made.base, "base", json.loads((made.base / "config.json").read_text()))
    made_draft = settle(make_plan(apart, "all"), base, CheckReport("parts", ()))
    write(made_draft, str(tmp_path / "out"), MergeOptions())
    assert_equal_bits(tmp_path / "out", made)


def test_another_dtype_rounds_everything_once(tmp_path):
    made = pair(tmp_path, shard="20KB")
    made.merge(tmp_path / "wide")
    made.merge(tmp_path / "narrow", dtype="bf16")
    wide, narrow = tensors(tmp_path / "wide"), tensors(tmp_path / "narrow")
    for name, tensor in wide.items():
        assert torch.equal(as_torch(narrow[name]), as_torch(tensor).bfloat16()), name
    index = json.loads((tmp_path / "narrow" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in narrow.values())
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"
    assert loaded(tmp_path / "narrow", made.model.get_base_model()).dtype == torch.bfloat16


def resized(folder, *, tie, rows=71):
    """An adapter that was trained after the vocabulary had grown, and the base from before."""
    config = tiny_config("llama")
    config.tie_word_embeddings = tie
    base = LlamaForCausalLM(config)
    base.save_pretrained(folder / "base", max_shard_size="20KB")
    base.resize_token_embeddings(rows)
    keys = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 3, "init_lora_weights": False}
    model = peft.get_peft_model(base, peft.LoraConfig(**keys)).eval()
    model.save_pretrained(folder / "adapter", save_embedding_layers=True)
    return model


@pytest.mark.parametrize("tie", [False, True])
def test_a_vocabulary_that_grew(tie, tmp_path):
    model = resized(tmp_path, tie=tie)
    (tmp_path / "base" / "tokenizer.json").write_text('{"old": 1}')
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"new": 1}')
    merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    merged = loaded(tmp_path / "out", model.get_base_model())
    wanted = model.merge_and_unload().state_dict()
    assert merged.config.vocab_size == 71
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in merged.state_dict().items())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"new": 1}'
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = tensors(tmp_path / "out").values()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in held)
    assert index["metadata"]["total_parameters"] == sum(tensor.size for tensor in held)


def test_a_vocabulary_that_grew_says_where_its_tokenizer_is_not(tmp_path):
    resized(tmp_path, tie=False)
    done = merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert [p.code for p in done.problems if p.severity == "warning"] == ["tokenizer-missing"]


def tied_pair(folder, **keys):
    def build():
        config = LlamaConfig(**{**FAMILIES["llama"][0], "tie_word_embeddings": True})
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()

    return pair(folder, build=build, **keys)


@pytest.mark.parametrize("stated", [True, None])
def test_tied_embeddings_are_refused_with_the_reason(stated, tmp_path):
    made = tied_pair(tmp_path, targets=["embed_tokens", "q_proj"])
    config = json.loads((made.base / "config.json").read_text())
    if stated is None:
        del config["tie_word_embeddings"]
        (made.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="the base ties them") as caught:
        made.merge(tmp_path / "out")
    assert [problem.code for problem in caught.value.problems] == ["tied"]
    assert "tie_word_embeddings=False" in caught.value.problems[0].remedy
    assert not (tmp_path / "out").exists()
    done = made.merge(tmp_path / "out", layers="0-2")  # without the embedding
    assert done.changed == 3


def test_a_tied_head_saved_alone_is_refused(tmp_path):
    made = tied_pair(tmp_path, targets=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(RefusedError, match="the head saved whole and the base ties them"):
        made.merge(tmp_path / "out")


def test_tied_embeddings_that_change_alike_are_merged(tmp_path):
    """The head's factors are the embedding's, crossed: peft would add them twice, for it merges each of the two."""
    made = tied_pair(tmp_path, targets=["embed_tokens", "lm_head"])
    file = made.adapter / "adapter_model.safetensors"
    held = weights(made.adapter)
    A, B = (next(held[name] for name in held if f"lora_embedding_{x}" in name) for x in "AB")
    head = "base_model.model.lm_head.lora_{}.weight"
    held |= {head.format("A"): Tensor.of(B.float32().T), head.format("B"): Tensor.of(A.float32().T)}
    file.unlink()
    safetensors_file.write(file, held, {"format": "pt"})
    before = as_torch(tensors(made.base)["model.embed_tokens.weight"])
    made.merge(tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert "lm_head.weight" not in found
    wanted = before + (as_torch(B) @ as_torch(A)).T * (7 / 3)
    assert torch.equal(as_torch(found["model.embed_tokens.weight"]), wanted)


def test_tokens_trained_on_tied_embeddings(tmp_path):
    made = tied_pair(tmp_path, targets=["q_proj"], trainable_token_indices=[1, 4])
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


def test_a_fold_of_a_power_of_two_rounds_nothing(tmp_path):
    for alpha in (6, 7):  # scales 2 and 7/3
        made = pair(tmp_path / str(alpha), dtype=torch.bfloat16, lora_alpha=alpha)
        made.merge(made.base.parent / "out")
        assert_equal_bits(made.base.parent / "out", made)


def test_the_function_returns_the_folder_and_warns(tmp_path, monkeypatch):
    made = pair(tmp_path, targets=["o_proj"])
    monkeypatch.chdir(tmp_path)
    assert adaptrix.merge(made.adapter, made.base).name == "adapter-merged"
    other = pair(tmp_path / "part", targets=["o_proj"], layers_to_transform=[0])
    with pytest.warns(adaptrix.AdaptrixWarning, match="none of its layers has a delta"):
        adaptrix.merge(other.adapter, other.base, tmp_path / "idle", layers="1-2")
    before, after = tensors(other.base), tensors(tmp_path / "idle")
    assert all(np.array_equal(before[name].numpy(), after[name].numpy()) for name in before)


def test_what_a_plan_leaves_out_is_said(tmp_path):
    made = pair(tmp_path, targets=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    done = made.merge(tmp_path / "out", layers="0,2")
    assert done.changed == 2
    assert [(p.code, p.severity) for p in done.problems if p.severity != "note"] == [("left-out", "warning")]
    before, after = tensors(made.base), tensors(tmp_path / "out")
    assert before["lm_head.weight"].tobytes() == after["lm_head.weight"].tobytes()


def _of_no_family(made):
    """Gives a base a model type that neither the registry nor transformers knows, and returns its own config."""
    file = made.base / "config.json"
    known = file.read_text()
    file.write_text(json.dumps(json.loads(known) | {"model_type": "novel"}))
    return known


@pytest.mark.parametrize(("family", "targets"), [("llama", None), ("gpt2", ["c_attn", "c_fc"])])
def test_a_family_that_nobody_knows(family, targets, tmp_path):
    """Paths are the adapter's own; which way round a weight lies, its shape says."""
    made = pair(tmp_path, family, targets=targets)
    known = _of_no_family(made)
    done = made.merge(tmp_path / "out")
    assert "architecture-unknown" in {problem.code for problem in done.problems}
    (tmp_path / "out" / "config.json").write_text(known)
    assert_equal_bits(tmp_path / "out", made)


def test_a_square_weight_of_such_a_family_is_refused(tmp_path):
    """Its config's fan_in_fan_out is no witness: peft itself corrects it by the class of the module."""
    made = pair(tmp_path, "gpt2", targets=["attn.c_proj"])
    _of_no_family(made)
    with pytest.raises(RefusedError) as refused:
        made.merge(tmp_path / "out")
    assert {problem.code for problem in refused.value.problems} == {"ambiguous", "base-unusable"}
    assert "its weight is square, [24, 24]" in str(refused.value)


def test_dora_on_a_part_of_a_fused_weight_is_refused(tmp_path):
    made = pair(tmp_path, "phi3", targets=["qkv_proj"], use_dora=True)
    bound = Pipeline().bind(adaptrix.load(made.adapter), str(made.base))
    rows = role_rows(bound.architecture.roles["qkv"], bound.dims)
    part = {Site(s.layer, s.role, "v"): split(delta, rows)["v"] for s, delta in bound.deltas.items()}
    targets = {Site(s.layer, s.role, "v"): target for s, target in bound.targets.items()}
    bound = replace(bound, deltas=MappingProxyType(part), targets=MappingProxyType(targets))
    base = open_base(made.base, "base", json.loads((made.base / "config.json").read_text()))
    with pytest.raises(RefusedError, match="DoRA on parts of a fused weight"):
        settle(make_plan(bound, "all"), base, CheckReport("parts", ()))
