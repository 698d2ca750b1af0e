"""Other caches than a session's run as transformers runs them, and swapping one is refused by its name."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from adaptrix.attaching import attach
from adaptrix.errors import UsageError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.swapping import WINDOWS, apart, filled, placed, prompt, tiny, upper

OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
KINDS = {
    "DynamicCache": lambda config: DynamicCache(config=config),
    "StaticCache": lambda config: StaticCache(config=config, max_cache_len=20),
    "QuantizedCache": lambda config: QuantizedCache("fp8", config),
}
#: transformers quantises none with windows
PAIRS = [("llama", "QuantizedCache")] + [(f, k) for f in ("llama", *WINDOWS) for k in ("DynamicCache", "StaticCache")]


@torch.no_grad()
@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_other_caches_run_as_they_are_and_are_not_swapped(family, kind, tmp_path):
    model = tiny(family)
    given = prompt(padded=True)
    with attach(model, upper(family, tmp_path, model)) as session:
        session.activate("a")
        cache = KINDS[kind](model.config)
        logits = model(**placed(given), past_key_values=cache, use_cache=True).logits[:, -1]
        assert (logits - filled(model, given)[1]).abs().max() < 1e-5
        with pytest.raises(UsageError, match=f"an? {kind}, which does not know.*new_cache"):
            session.swap("b", cache)
        assert session.report().swaps == 0
        assert session._hooks.current.adapters[0].name == "a"


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", *WINDOWS])
def test_generate_makes_a_static_cache_of_its_own_and_takes_not_both(family, tmp_path):
    model = tiny(family)
    given = prompt(padded=True)
    with attach(model, upper(family, tmp_path, model)) as session:
        session.activate("a")
        wanted = model.generate(**given, **OPTIONS)
        assert torch.equal(model.generate(**given, cache_implementation="static", **OPTIONS), wanted)
        with pytest.raises(ValueError, match="cache_implementation"):
            model.generate(**given, past_key_values=session.new_cache(), cache_implementation="static", **OPTIONS)


@torch.no_grad()
def test_that_of_an_encoder_and_decoder_too(tmp_path):
    model = tiny_model("t5")
    saved(model, tmp_path / "a", target_modules=["q", "v"])
    given = {"input_ids": torch.randint(1, 40, (2, 6)), "decoder_input_ids": torch.randint(1, 40, (2, 4))}
    with attach(model, {"a": tmp_path / "a"}) as session:
        session.activate("a")
        cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
        assert torch.equal(model(**given, past_key_values=cache).logits, model(**given).logits)
        with pytest.raises(UsageError, match="EncoderDecoderCache, which does not know"):
            session.swap("a", cache)


@torch.no_grad()
def test_a_copy_of_a_cache_is_one_of_its_own(tmp_path):
    import copy

    model = tiny("gemma2")
    given = prompt()
    with attach(model, upper("gemma2", tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**placed(given), past_key_values=cache, use_cache=True)
        under_a, _ = filled(model, given)
        other = copy.deepcopy(cache)
        assert session.swap("b", other).kept == 2
        under_b, _ = filled(model, given)
    assert apart(cache, under_a) < 1e-5
    assert apart(other, under_b) < 1e-5
    assert apart(under_a, under_b) > 1e-3
