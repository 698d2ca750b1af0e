"""Batches whose rows have adapters of their own are divided where dimension 0 is the rows, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adaptrix import UsageError, attach

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Inputs = Mapping[str, Tensor]


def _filled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def _pair(folder: Path, make: Callable[[], nn.Module], targets: Any) -> dict[str, str]:
    """Two random LoRAs for a model, saved by peft."""
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, target_modules=targets)
        get_peft_model(make(), config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in "ab"}


def _logits(model: nn.Module, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs)[0]
    return logits


def _require_rows(model: nn.Module, adapters: dict[str, str], inputs: Inputs, alone: list[Inputs]) -> None:
    """A routed batch is what its rows are, each run by itself under its adapter, and the adapters differ."""
    with attach(model, adapters) as session:
        wanted = []
        for name, one in zip("ab", alone, strict=True):
            with session.use(name):
                wanted.append(_logits(model, **one))
        other = _logits(model, **alone[0])
        with session.route(["a", "b"]):
            found = _logits(model, **inputs)
    assert (wanted[0] - other).abs().max() > 0.01
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-4)


def _refused(model: nn.Module, adapters: dict[str, str], inputs: Inputs, **found: Any) -> str:
    with (
        attach(model, adapters) as session,
        session.route(found.get("rows", ["a", "b"])),
        pytest.raises(UsageError) as caught,
    ):
        _logits(model, **inputs)
    assert {problem.code for problem in caught.value.problems} == {"route"}
    return str(caught.value)


def _gemma3() -> nn.Module:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "vision_use_head": False}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=vision, **tokens)
    return _filled(transformers.Gemma3ForConditionalGeneration(config))


def _seen(*images: int) -> dict[str, Tensor]:
    """A batch for Gemma 3 with so many images in each row."""
    rows = [([91, *[90] * 4, 92, 7] * count + [5] * 14)[:14] for count in images]
    ids, generator = torch.tensor(rows), torch.Generator().manual_seed(2)
    pixels = {"pixel_values": torch.randn(sum(images), 3, 16, 16, generator=generator)} if sum(images) else {}
    return {"input_ids": ids, "token_type_ids": (ids == 90).long(), **pixels}


def _row(inputs: Inputs, row: int, images: slice) -> Inputs:
    return {key: value[images] if key == "pixel_values" else value[row : row + 1] for key, value in inputs.items()}


TOWER = r".*vision_tower.*(q_proj|v_proj)"


@pytest.fixture(scope="module")
def vision_pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _pair(tmp_path_factory.mktemp("towers"), _gemma3, TOWER)


@pytest.mark.parametrize("images", [(2, 0), (0, 2), (1, 2), (0, 1)])
def test_images_that_are_not_shared_out_evenly_are_refused_by_name(vision_pair, images):
    said = _refused(_gemma3(), vision_pair, _seen(*images))
    assert "model.vision_tower" in said
    assert "images" in said


@pytest.mark.parametrize("images", [1, 2])
def test_images_of_a_row_go_to_its_adapter_where_every_row_has_as_many(vision_pair, images):
    inputs = _seen(images, images)
    alone = [_row(inputs, row, slice(row * images, (row + 1) * images)) for row in range(2)]
    _require_rows(_gemma3(), vision_pair, inputs, alone)


def test_adapters_of_a_tower_route_text_alone(vision_pair):
    model, inputs = _gemma3(), _seen(0, 0)
    with attach(model, vision_pair) as session, session.route(["a", "b"]):
        found = _logits(model, **inputs)
    torch.testing.assert_close(found, _logits(model, **inputs))


def test_a_tower_called_by_itself_is_refused(vision_pair):
    model = _gemma3()
    with attach(model, vision_pair) as session, session.route(["a", "b"]), pytest.raises(UsageError, match="images"):
        model.model.get_image_features(torch.randn(2, 3, 16, 16))


def test_the_text_part_is_routed_beside_images(tmp_path):
    adapters = _pair(tmp_path, _gemma3, r".*language_model.*(q_proj|down_proj)")
    inputs = _seen(2, 0)
    alone = [_row(inputs, 0, slice(0, 2)), {k: v for k, v in _row(inputs, 1, slice(0)).items() if k != "pixel_values"}]
    _require_rows(_gemma3(), adapters, inputs, alone)


def _qwen2_vl() -> nn.Module:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=90, vision_start_token_id=91, vision_end_token_id=92
    )
    return _filled(transformers.Qwen2VLForConditionalGeneration(config))


def test_packed_patches_are_refused_by_name(tmp_path):
    adapters = _pair(tmp_path, _qwen2_vl, r".*visual.*(qkv|fc1)")
    ids = torch.tensor([[91, 90, 90, 90, 90, 92, 5, 6], [91, 90, 90, 90, 90, 92, 7, 8]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(32, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "mm_token_type_ids": (ids == 90).long(),
    }
    assert "visual" in _refused(_qwen2_vl(), adapters, inputs)


def _ids(rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 89, (rows, length), generator=torch.Generator().manual_seed(1))}


def _both(inputs: Inputs) -> list[Inputs]:
    return [{key: value[row : row + 1] for key, value in inputs.items()} for row in range(2)]


class _Experts(nn.Module):
    """Two experts, to which a router sends the tokens one by one, as in older models and in those of others."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out, sent = torch.zeros_like(flat), flat[:, 0] > flat[:, 0].median()
        for number, expert in enumerate(self.experts):
            out[sent == number] = expert(flat[sent == number])
        return out.view(x.shape)


def _routed_experts() -> nn.Module:
    sizes = {key: value for key, value in TEXT.items() if key != "head_dim"}
    model = transformers.OlmoForCausalLM(transformers.OlmoConfig(**{**sizes, "num_hidden_layers": 1}))
    for layer in model.model.layers:
        layer.mlp = _Experts(32)
    return _filled(model)


def test_tokens_gathered_for_an_expert_are_refused_by_name(tmp_path):
    adapters = _pair(tmp_path, _routed_experts, r".*experts\.\d")
    for inputs in (_ids(), _ids(length=1), _ids(4)):
        assert "router" in _refused(_routed_experts(), adapters, inputs)


def _opt() -> nn.Module:
    sizes = {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return _filled(transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, word_embed_proj_dim=32)))


def test_rows_that_are_flattened_in_order_are_routed(tmp_path):
    _require_rows(_opt(), _pair(tmp_path, _opt, ["fc1", "fc2"]), _ids(), _both(_ids()))


def _t5() -> nn.Module:
    sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return _filled(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)))


def test_encoder_states_are_routed_with_their_rows(tmp_path):
    adapters = _pair(tmp_path, _t5, ["q", "k", "v", "wo"])
    inputs = {**_ids(), "decoder_input_ids": _ids(length=3)["input_ids"]}
    _require_rows(_t5(), adapters, inputs, _both(inputs))
    with attach(_t5(), adapters) as session:  # the encoder runs by itself, and beams come after it
        model = session._hooks.model
        wanted = []
        for name, one in zip("ab", _both(_ids()), strict=True):
            with session.use(name):
                wanted.append(model.generate(**one, num_beams=2, max_new_tokens=4, min_new_tokens=4))
        with session.route(["a", "b"]):
            found = model.generate(**_ids(), num_beams=2, max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(found, torch.cat(wanted))


def _longformer() -> nn.Module:
    sizes = {**TEXT, "attention_window": [4, 4], "max_position_embeddings": 40}
    for key in ("num_key_value_heads", "head_dim"):
        del sizes[key]
    return _filled(transformers.LongformerForMaskedLM(transformers.LongformerConfig(**sizes)))


@pytest.mark.parametrize("length", [8, 4])
def test_tokens_before_rows_are_refused_by_name(tmp_path, length):
    adapters = _pair(tmp_path, _longformer, ["query", "value"])
    assert "attention.self.query" in _refused(_longformer(), adapters, _ids(4, length))


def _llama() -> nn.Module:
    return _filled(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)))


def test_a_batch_repeated_as_a_whole_is_refused_and_copies_side_by_side_are_not(tmp_path):
    adapters, ids = _pair(tmp_path, _llama, ["q_proj", "down_proj"]), _ids()["input_ids"]
    assert "guidance" in _refused(_llama(), adapters, {"input_ids": torch.cat([ids, ids])})
    model = _llama()
    with attach(model, adapters) as session:
        with session.route(["a", "b"]):
            found = _logits(model, input_ids=ids.repeat_interleave(2, 0))
        with session.route(["a", "a", "b", "b"]):
            wanted = _logits(model, input_ids=ids.repeat_interleave(2, 0))
        with session.route(["a", "b"] * 2):
            joined = _logits(model, input_ids=torch.cat([ids, ids]))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(joined.view(2, 2, *joined.shape[1:])[0], wanted[::2], rtol=1e-4, atol=1e-4)


def test_factors_of_rows_are_divided_as_adapters_are():
    model = _gemma3()
    path = "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    assert model.get_submodule(path) is not None
    factors = {path: (torch.randn(2, 3, 16), torch.randn(2, 16, 3))}
    with attach(model, {}) as session, session.given(factors), pytest.raises(UsageError, match="images"):
        _logits(model, **_seen(2, 0))


def test_a_compiled_pass_refuses_what_does_not_show_its_rows(tmp_path):
    adapters, model = _pair(tmp_path, _routed_experts, r".*experts\.\d"), _routed_experts()
    with attach(model, adapters, slots=2) as session, session.route(["a", "b"]):
        session.compile(backend="eager")
        with pytest.raises(UsageError, match="which row a token is of"):
            _logits(model, **_ids())
