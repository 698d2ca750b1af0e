"""Small models of families that the registry has no file for."""

import torch
import transformers

_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: GQA, and heads whose width is not hidden / heads
TEXT = {
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
    return of("GptOssForCausalLM", **{**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, **keys})


def deepseek():
    latent = {"q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    return of(
        "DeepseekV3ForCausalLM",
        **{**TEXT, "head_dim": 4, "num_key_value_heads": 4},
        **latent,
        **_ROUTED,
        first_k_dense_replace=1,
    )


def glm():
    return of("Glm4MoeForCausalLM", **TEXT, **_ROUTED, first_k_dense_replace=1)


def olmoe():
    return of("OlmoeForCausalLM", **{**TEXT, "num_experts": 4, "num_experts_per_tok": 2})


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    text = {**TEXT, "rope_parameters": rope}
    return of("Qwen2VLForConditionalGeneration", text_config=text, vision_config=vision, **ids)


def gpt_neo():
    return of("GPTNeoForCausalLM", vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
              attention_types=[[["global", "local"], 1]], max_position_embeddings=64, window_size=8)  # fmt: skip


def openai_gpt():
    return of("OpenAIGPTLMHeadModel", vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def paligemma():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 32}  # 16 positions: a square table
    text = {**TEXT, "model_type": "gemma"}
    return of("PaliGemmaForConditionalGeneration", text_config=text, vision_config=vision, image_token_index=90)
