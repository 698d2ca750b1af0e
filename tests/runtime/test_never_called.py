"""Modules that are attached to and never called are named; modules that a pass rightly leaves out are not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adaptrix import AdaptrixWarning, RefusedError, attach

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _adapter(model: nn.Module, folder: Path, targets: Any) -> str:
    config = LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, target_modules=targets)
    get_peft_model(model, config).save_pretrained(folder)
    return str(folder)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The warnings of a block about modules that are not called."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught if "call" in str(one.message) and one.category is AdaptrixWarning]


def _ids(rows: int = 2) -> Tensor:
    return torch.randint(3, 89, (rows, 5), generator=torch.Generator().manual_seed(1))


class _Reading(nn.Module):
    """Multiplies by the weight of a module that it does not call, unless it is told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, False
        for key, child in inner.named_children():
            self.add_module(key, child)

    def forward(self, x: Tensor) -> Tensor:
        down: Any = self.down_proj
        middle = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return down(middle) if self.calls else middle @ down.weight.T


def _llama() -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).eval()


def _reading_llama() -> transformers.LlamaForCausalLM:
    model = _llama()
    for layer in model.model.layers:
        mlp = _Reading(layer.mlp)
        del mlp.inner
        layer.mlp = mlp
    return model


@pytest.fixture
def mlp_adapter(tmp_path: Path) -> str:
    return _adapter(_llama(), tmp_path / "mlp", ["up_proj", "down_proj", "q_proj"])


def test_a_module_that_is_read_and_not_called_is_named_once_and_reported(mlp_adapter):
    model = _reading_llama()
    with attach(model, {"a": mlp_adapter, "b": mlp_adapter}) as session:
        with _heard() as said, session.use("a"):
            model(_ids())
        assert len(said) == 1
        for part in ("2 active modules", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"):
            assert part in said[0]
        with _heard() as again:
            for choice in ("a", "b", {"a": 0.5, "b": 0.5}):
                with session.use(choice):
                    model(_ids())
            with session.route(["a", "b"]):
                model.generate(_ids(), max_new_tokens=2)
        assert again == []
        assert session.report().never_called == ("layers.0.down", "layers.1.down")
        for layer in model.model.layers:
            layer.mlp.calls = True
        with session.use("a"):
            model(_ids())
        assert session.report().never_called == ()


def test_the_warning_needs_a_selection_and_a_pass_of_the_whole_model(mlp_adapter):
    model = _reading_llama()
    with attach(model, {"a": mlp_adapter}) as session:
        with _heard() as said:
            model(_ids())
            with session.use("a"):
                model.model(_ids())
        assert said == []
        assert session.report().never_called == ()


def test_a_pass_that_is_cut_short_decides_nothing(mlp_adapter):
    model = _reading_llama()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(model, {"a": mlp_adapter}) as session, session.use("a"):
        handle = model.model.layers[1].register_forward_pre_hook(stop)
        with _heard() as said, pytest.raises(KeyboardInterrupt):
            model(_ids())
        handle.remove()
        assert said == []
        with _heard() as said:
            model(_ids())
        assert len(said) == 1


def test_no_hook_of_the_search_stays(mlp_adapter):
    model = _reading_llama()
    with attach(model, {"a": mlp_adapter}) as session, session.use("a"):
        model(_ids())
        assert not any(module._forward_pre_hooks for module in model.modules() if module is not model)


def test_a_warning_that_is_an_error_leaves_no_pass_behind(mlp_adapter):
    model = _reading_llama()
    with attach(model, {"a": mlp_adapter}) as session:
        with warnings.catch_warnings(), session.use("a"):
            warnings.simplefilter("error", AdaptrixWarning)
            with pytest.raises(AdaptrixWarning):
                model(_ids())
        assert torch.equal(model(_ids()).logits, _bare(model))


def _bare(model: nn.Module) -> Tensor:
    """The logits without any hook."""
    kept = [(module, module._forward_hooks.copy()) for module in model.modules()]
    for module, _ in kept:
        module._forward_hooks.clear()
    logits: Tensor = model(_ids()).logits
    for module, hooks in kept:
        module._forward_hooks.update(hooks)
    return logits


def _mamba() -> nn.Module:
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()


def _siglip() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {"image_size": 16, "patch_size": 8}, {"vocab_size": 96, "max_position_embeddings": 16}
    config = transformers.SiglipConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision})
    return transformers.SiglipModel(config).eval()


@pytest.mark.parametrize(
    ("make", "targets", "reader", "inputs"),
    [
        (_mamba, ["dt_proj", "x_proj"], "MambaMixer", {}),
        (_siglip, r".*head.attention.out_proj", "nn.MultiheadAttention", {"pixel_values": torch.ones(2, 3, 16, 16)}),
    ],
)
def test_a_class_that_only_reads_a_weight_is_named_at_attach_and_not_again(tmp_path, make, targets, reader, inputs):
    path = _adapter(make(), tmp_path, targets)
    with _heard() as said:
        session = attach(make(), {"a": path})
    assert len(said) == 1
    assert f"{reader} reads the weight here" in said[0]
    assert "x_proj" not in said[0]
    with session, session.use("a"), _heard() as again:
        session._hooks.model(input_ids=_ids(), **inputs)
    assert again == []
    assert all("dt_proj" in site or "out_proj" in site for site in session.report().never_called)
    assert session.report().never_called


def test_a_lora_of_a_whole_attention_is_called_what_it_is(tmp_path):
    path = _adapter(_siglip(), tmp_path, r".*head.attention")
    with pytest.raises(RefusedError, match="in_proj_weight and one of out_proj") as caught:
        attach(_siglip(), {"a": path})
    assert [problem.code for problem in caught.value.problems] == ["variant-unsupported"]
    assert "ignore" not in str(caught.value)


def _falcon_mamba() -> nn.Module:
    config = transformers.FalconMambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    return transformers.FalconMambaForCausalLM(config).eval()


def test_a_class_that_calls_a_module_at_times_is_named_after_a_pass(tmp_path):
    path = _adapter(_falcon_mamba(), tmp_path, ["dt_proj", "x_proj"])
    model = _falcon_mamba()
    with _heard() as at_attach:
        session = attach(model, {"a": path})
    with session, session.use("a"), _heard() as said:
        model(_ids())
    assert at_attach == []
    assert "dt_proj" in said[0]


def _t5() -> nn.Module:
    sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()


class _Experts(nn.Module):
    """All tokens go to the first of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.experts[0](x)
        return out


def _olmo() -> nn.Module:
    model = transformers.OlmoForCausalLM(transformers.OlmoConfig(**TEXT))
    for layer in model.model.layers:
        layer.mlp = _Experts()
    return model.eval()


def _gemma3() -> nn.Module:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "vision_use_head": False}
    config = transformers.Gemma3Config(text_config={**TEXT, "head_dim": 8}, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def _longformer() -> nn.Module:
    sizes = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    config = transformers.LongformerConfig(**sizes, attention_window=[4, 4], max_position_embeddings=40)
    return transformers.LongformerForMaskedLM(config).eval()


def _generates(model: Any) -> None:
    model.generate(_ids(), max_new_tokens=3, min_new_tokens=3)


def _runs(model: Any) -> None:
    model(input_ids=_ids())


def _goes_on(model: Any) -> None:
    """A pass that starts with a filled cache, under an adapter that no pass ran under before."""
    encoded = model.get_encoder()(_ids())
    with torch.no_grad():
        first = model(encoder_outputs=encoded, decoder_input_ids=_ids(), use_cache=True)
    model(encoder_outputs=encoded, decoder_input_ids=_ids()[:, :1], past_key_values=first.past_key_values)


@pytest.mark.parametrize(
    ("make", "targets", "run"),
    [
        (_t5, ["q", "k", "v", "wo", "shared"], _generates),
        (_t5, ["k", "v"], _goes_on),
        (_olmo, r".*experts\.\d", _generates),
        (_gemma3, r".*(vision_tower|language_model).*(q_proj|v_proj|fc1)", _runs),
        (_longformer, ["query", "query_global"], _runs),
        (_llama, ["embed_tokens", "q_proj"], lambda model: model(inputs_embeds=torch.ones(1, 3, 32))),
    ],
    ids=["encoder-decoder", "filled-cache", "experts", "text-alone", "global-attention", "embeddings-given"],
)
def test_what_a_pass_rightly_leaves_out_is_not_named(
    tmp_path: Path, make: Callable[[], nn.Module], targets: Any, run: Callable[[Any], None]
):
    model = make()
    path = _adapter(copy.deepcopy(model), tmp_path, targets)
    with attach(model, {"a": path}) as session, session.use("a"), _heard() as said:
        run(model)
    assert said == []
    assert session.report().never_called == ()
