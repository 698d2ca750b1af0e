"""Families without a file in the registry: orientation, ties and names of files are those of the model class."""

import json
import warnings

import pytest
import torch
import transformers

from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair

_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: GQA, and heads whose width is not hidden / heads
_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    **_ENDS,
}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_group": 1, "topk_group": 1}
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def filled(model):
    """The model with numbers that are large enough for an adapter's effect to show, and small enough to be exact."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def of(name, **keys):
    """A model of transformers' class and config of a name such as ``Qwen2VLForConditionalGeneration``."""
    stem = name.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    return filled(getattr(transformers, name)(getattr(transformers, f"{stem}Config")(**keys)))


def gpt_oss(**keys):
    return of("GptOssForCausalLM", **{**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, **keys})


def deepseek():
    latent = {"q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    return of("DeepseekV3ForCausalLM", **{**_TEXT, "head_dim": 4}, **latent, **_ROUTED, first_k_dense_replace=1)


def glm():
    return of("Glm4MoeForCausalLM", **_TEXT, **_ROUTED, first_k_dense_replace=1)


def olmoe():
    return of("OlmoeForCausalLM", **{**_TEXT, "num_experts": 4, "num_experts_per_tok": 2})


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    text = {**_TEXT, "rope_parameters": rope}
    return of("Qwen2VLForConditionalGeneration", text_config=text, vision_config=vision, **ids)


def gpt_neo():
    return of("GPTNeoForCausalLM", vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
              attention_types=[[["global", "local"], 1]], max_position_embeddings=64, window_size=8)  # fmt: skip


def openai_gpt():
    return of("OpenAIGPTLMHeadModel", vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def paligemma():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 32}  # 16 positions: a square table
    text = {**_TEXT, "model_type": "gemma"}
    return of("PaliGemmaForConditionalGeneration", text_config=text, vision_config=vision, image_token_index=90)


@pytest.fixture(scope="module")
def inputs():
    return torch.randint(3, 80, (2, 9), generator=torch.Generator().manual_seed(1))


def assert_merged_as_peft_does(made, out):
    """Every parameter of the merged model, as transformers reads it, is that of peft's own merge."""
    kind = type(made.model.get_base_model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = made.model.merge_and_unload().state_dict()
        found = kind.from_pretrained(out, dtype=torch.float32).state_dict()
        plain = kind.from_pretrained(made.base, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name
    assert any(not torch.equal(found[name], plain[name]) for name in wanted)


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        pytest.param(qwen2_vl, {"target_modules": r".*language_model.*(q_proj|v_proj)"}, id="files-of-other-names"),
        pytest.param(lambda: gpt_oss(), {"target_modules": [], "target_parameters": _EXPERTS}, id="experts-in-out"),
        pytest.param(
            lambda: gpt_oss(intermediate_size=32),
            {"target_modules": [], "target_parameters": _EXPERTS[1:]},
            id="experts-in-out-square",
        ),
        pytest.param(
            deepseek, {"target_modules": ["o_proj"], "target_parameters": _EXPERTS}, id="files-of-single-experts"
        ),
        pytest.param(glm, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}, id="glm"),
        pytest.param(olmoe, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}, id="olmoe"),
        pytest.param(
            gpt_neo, {"target_modules": ["out_proj", "c_fc"], "fan_in_fan_out": True}, id="linear-said-conv1d"
        ),
        pytest.param(
            openai_gpt, {"target_modules": ["c_proj", "c_fc"], "fan_in_fan_out": False}, id="conv1d-said-linear"
        ),
        pytest.param(paligemma, {"target_modules": ["position_embedding"]}, id="square-embedding-of-a-tower"),
    ],
)
def test_orientation_and_files(build, keys, tmp_path):
    made = pair(tmp_path, build=build, **keys)
    config = made.adapter / "adapter_config.json"
    if "fan_in_fan_out" in keys:  # peft corrects it while it saves
        config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": keys["fan_in_fan_out"]}))
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")


def test_a_stack_stored_in_out_was_never_written_the_other_way(tmp_path):
    """What peft changed in 0.19 was for stacks stored [out, in]."""
    made = pair(tmp_path, build=gpt_oss, target_modules=[], target_parameters=_EXPERTS)
    file = made.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_version": "0.17.1"}))
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")


_TIED = {
    "smollm3": lambda: of("SmolLM3ForCausalLM", **_TEXT, tie_word_embeddings=True),
    "starcoder2": lambda: of("Starcoder2ForCausalLM", **_TEXT),
    "lfm2": lambda: of("Lfm2ForCausalLM", **_TEXT, layer_types=["conv", "full_attention"]),
    "gpt_neo": gpt_neo,
}


@pytest.mark.parametrize("family", _TIED)
@pytest.mark.parametrize("half", ["embedding", "head"])
def test_half_of_a_tie_is_refused_as_such(family, half, tmp_path):
    model = _TIED[family]()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    modules = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    name = next(path for path, module in model.named_modules() if module is modules[half])
    made = pair(tmp_path, build=lambda: model, targets=[name.rpartition(".")[2]])
    with pytest.raises(RefusedError) as refused:
        made.merge(tmp_path / "out")
    assert {problem.code for problem in refused.value.problems} == {"tied"}
    assert "merged, the change would be to all of them" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_tied_is_merged(tmp_path):
    model = of("SmolLM3ForCausalLM", **_TEXT, tie_word_embeddings=False)
    made = pair(tmp_path, build=lambda: model, targets=["embed_tokens", "lm_head"])
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")
