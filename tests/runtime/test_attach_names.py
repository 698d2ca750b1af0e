"""Adapters that name modules as other versions and other trees do. The judge is peft on the model that each was of."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file

import adaptrix
from adaptrix.base.names import ModelNames, Place
from adaptrix.errors import RefusedError
from tests.helpers.attached import TOLERANCE, logits
from tests.helpers.other_families import TEXT, deepseek, glm, of, olmoe, qwen2_vl
from tests.helpers.peft_models import rewrite

_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}


def qwen3_vl():
    tower = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_heads": 2}
    tower |= {"patch_size": 4, "temporal_patch_size": 1, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    return of("Qwen3VLForConditionalGeneration", text_config={**TEXT, **_ROPE}, vision_config=tower, **ids)


def llava():
    tower = {**_TOWER, "patch_size": 8, "model_type": "clip_vision_model", "projection_dim": 12}
    config = {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": tower, "image_token_index": 90}
    return of("LlavaForConditionalGeneration", **config, image_seq_length=4)


def mllama():
    tower = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "image_size": 16,
    }
    tower |= {"attention_heads": 2, "patch_size": 8, "vision_output_dim": 32, "max_num_tiles": 1}
    tower |= {"supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0]}
    text = {**TEXT, "cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    return of("MllamaForConditionalGeneration", text_config=text, vision_config=tower, image_token_index=95)


def adapted(model, folder, seed=1, **keys):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, **keys)
    made = peft.get_peft_model(copy.deepcopy(model), config).eval()
    made.save_pretrained(folder)
    return made


def respelled(folder, old, new):
    """The adapter in this folder, with other beginnings of its names."""
    rewrite(folder, lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()})


def near(found, wanted):
    return (found - wanted).abs().max() < TOLERANCE


#: a model, what its paths begin with, and what older versions had there
OLDER = {
    "Qwen2-VL": (qwen2_vl, "model.language_model.", "model."),
    "LLaVA": (llava, "model.language_model.", "language_model.model."),
    "Mllama": (mllama, "model.language_model.", "language_model.model."),
}


@pytest.mark.parametrize(("build", "today", "older"), OLDER.values(), ids=OLDER)
def test_names_of_older_versions(build, today, older, tmp_path):
    model = build()
    theirs = adapted(model, tmp_path, target_modules=r".*language_model.*(q_proj|v_proj)")
    wanted = logits(theirs)
    respelled(tmp_path, today, older)
    rewrite(tmp_path, target_modules=["q_proj", "v_proj"])
    assert not near(logits(model), wanted)
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), wanted)


@pytest.mark.parametrize("build", [qwen3_vl, llava, qwen2_vl])
def test_an_adapter_of_the_language_model_on_a_model_of_pictures_and_back(build, tmp_path):
    model = build()
    theirs = adapted(model, tmp_path, target_modules=r".*language_model.*(q_proj|down_proj)")
    wanted = logits(theirs)
    respelled(tmp_path, "model.language_model.", "model.")
    rewrite(tmp_path, target_modules=["q_proj", "down_proj"])
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), wanted)


def test_an_adapter_of_a_model_of_pictures_on_its_language_model(tmp_path):
    model = of("Qwen3ForCausalLM", **TEXT)
    theirs = adapted(model, tmp_path, target_modules=["q_proj", "v_proj"])
    respelled(tmp_path, "model.layers.", "model.language_model.layers.")
    rewrite(tmp_path, target_modules=r".*language_model.*(q_proj|v_proj)")
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(theirs))


def test_what_a_model_really_lacks_is_still_refused(tmp_path):
    whole, alone = qwen3_vl(), of("Qwen3ForCausalLM", **TEXT)
    adapted(whole, tmp_path, target_modules=r".*(visual.*qkv|language_model.*q_proj)")
    with pytest.raises(RefusedError) as refused:
        adaptrix.attach(alone, {"x": tmp_path})
    assert all("visual" in problem.where for problem in refused.value.problems)


def test_one_module_under_two_names_is_refused(tmp_path):
    model = qwen2_vl()
    adapted(model, tmp_path, target_modules=r".*language_model.*q_proj")
    both = {key.replace("language_model.", ""): one + 1 for key, one in load_file(tmp_path / _FILE).items()}
    rewrite(tmp_path, lambda tensors: tensors | both, target_modules=["q_proj"])
    with pytest.raises(RefusedError, match="several names"):
        adaptrix.attach(model, {"x": tmp_path})


_FILE = "adapter_model.safetensors"
_NAMES = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("build", [deepseek, glm, olmoe])
def test_experts_one_by_one_of_families_that_stack_them(build, tmp_path):
    """By a dense sum: some experts, of unlike ranks, as versions before the stacks saved them."""
    model, wanted = build(), build()
    torch.manual_seed(3)
    tensors, ranks = {}, {}
    experts = wanted.model.layers[1].mlp.experts
    inner = experts.down_proj.shape[2]
    for number, (expert, name) in enumerate((e, n) for e in (2, 0, 3) for n in _NAMES):
        rank = 1 + number % 3
        out, inp = (32, inner) if name == "down_proj" else (inner, 32)
        A, B = torch.randn(rank, inp) / 3, torch.randn(out, rank) / 3
        path = f"model.layers.1.mlp.experts.{expert}.{name}"
        ranks[path] = rank
        tensors |= {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}
        stack = experts.down_proj if name == "down_proj" else experts.gate_up_proj
        stack.data[expert, slice(inner, None) if name == "up_proj" else slice(0, out)] += 5 / rank * B @ A
    adapted(model, tmp_path, target_modules=["o_proj"])
    rewrite(tmp_path, lambda _: tensors, r=1, lora_alpha=5, rank_pattern=ranks, target_modules=sorted(ranks))
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(wanted))
    assert not near(logits(model), logits(wanted))


def test_places_of_names():
    names = ModelNames(deepseek())
    assert names.place("model.layers.1.mlp.experts.3.up_proj") == Place(
        "model.layers.1.mlp.experts.gate_up_proj", 3, (20, 40)
    )
    assert names.place("model.language_model.layers.0.mlp.up_proj") == Place("model.layers.0.mlp.up_proj")
    assert names.place("model.layers.9.mlp.up_proj") is None
    assert names.place("visual.blocks.0.attn.qkv") is None


def test_a_plan_in_the_older_names_is_refused_for_its_true_reason(tmp_path):
    model = qwen2_vl()
    adapted(model, tmp_path / "a", target_modules=r".*language_model.*q_proj")
    respelled(tmp_path / "a", "language_model.", "")
    rewrite(tmp_path / "a", target_modules=["q_proj"])
    for layers in ("all", "1"):
        adaptrix.convert(tmp_path / "a", tmp_path / f"{layers}.safetensors", layers=layers)
    with adaptrix.attach(model, {"x": tmp_path / "all.safetensors"}) as session, session.use("x"):
        assert not near(logits(model), logits(qwen2_vl()))
    with pytest.raises(RefusedError, match="its plan is by names"):
        adaptrix.attach(model, {"x": tmp_path / "1.safetensors"})


def test_a_module_without_a_weight_is_not_said_to_be_missing(tmp_path):
    adapted(qwen2_vl(), tmp_path, target_modules=r".*language_model.*q_proj")
    respelled(tmp_path, "self_attn.q_proj", "self_attn")
    rewrite(tmp_path, target_modules=["self_attn"])
    with pytest.raises(RefusedError, match="which has no weight of its own") as refused:
        adaptrix.attach(qwen2_vl(), {"x": tmp_path})
    assert "no such module" not in str(refused.value)
