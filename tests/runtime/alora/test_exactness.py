"""Activated LoRA: the delta acts from the last invocation in a row on. peft is the judge, or a pass over everything."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.alora import INVOCATION, TOLERANCE, adapter, close, logits, part, prompt, tiny
from tests.helpers.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*activated LoRA:adaptrix.AdaptrixWarning")


def test_each_row_is_as_in_peft(base, made, session):
    given = prompt()
    plain = logits(base, **given)
    with session.use("a"):
        found = logits(base, **given)
    close(given, found, logits(made[1], **given))
    assert torch.equal(found[2], plain[2])
    assert torch.equal(found[0, :7], plain[0, :7])
    assert torch.equal(found[1, :6], plain[1, :6])
    assert all((found - plain)[row, -1].abs().max() > 0.1 for row in (0, 1, 3))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3"])
def test_other_families_are_as_in_peft(family, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[family][0])).eval()
    targets = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"]}.get(family, ["q_proj", "o_proj"])
    judge, given = adapter(model, tmp_path, target_modules=targets, fan_in_fan_out=family == "gpt2"), prompt()
    with adaptrix.attach(model, {"a": tmp_path}) as session, session.use("a"):
        close(given, logits(model, **given), logits(judge, **given))


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"lora_bias": True}, {"rank_pattern": {"q_proj": 5}}])
def test_variants_are_as_in_peft(options, base, tmp_path):
    judge, given = adapter(base, tmp_path, **options), prompt()
    with adaptrix.attach(base, {"a": tmp_path}) as session, session.use("a"):
        close(given, logits(base, **given), logits(judge, **given))


def test_a_head_may_be_given_the_last_tokens_alone(base, tmp_path):
    judge, given = adapter(base, tmp_path, target_modules=["q_proj", "lm_head"]), prompt()
    with adaptrix.attach(base, {"a": tmp_path}) as session, session.use("a"):
        whole = logits(base, **given)
        close(given, whole, logits(judge, **given))
        close(given, logits(base, **given, logits_to_keep=4), whole[:, -4:])
        with pytest.raises(RefusedError, match="rows of 12 tokens"):
            logits(base, **given, logits_to_keep=torch.tensor([3, 9]))


def test_generation_is_that_of_peft(base, made, session):
    given = {name: prompt()[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "do_sample": False}
    wanted = made[1].generate(**given, **options)
    with session.use("a"):
        assert torch.equal(base.generate(**given, **options), wanted)
        assert torch.equal(base.generate(**given, **options, cache_implementation="static"), wanted)
        assert torch.equal(base.generate(**given, **options, past_key_values=session.new_cache()), wanted)
    assert not torch.equal(base.generate(**given, **options), wanted)


def test_what_generate_appends_invokes_nothing(base, made, tmp_path):
    """peft looks at the prompt alone; so a row that comes to invoke itself stays as it was."""
    given = {name: prompt()[name] for name in ("input_ids", "attention_mask")}
    appended = base.generate(**given, max_new_tokens=6, do_sample=False)[2, 13]
    judge = adapter(base, tmp_path, tokens=[int(appended)])
    rows = {name: value[2:3] for name, value in given.items()}
    assert int(appended) not in rows["input_ids"]
    with adaptrix.attach(base, {"a": tmp_path}) as session, session.use("a"):
        found = base.generate(**rows, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, judge.generate(**rows, max_new_tokens=6, do_sample=False))


def test_tokens_that_are_drafted(base, made, session):
    given = {name: prompt()[name][:1] for name in ("input_ids", "attention_mask")}
    wanted = made[1].generate(**given, max_new_tokens=8, do_sample=False)
    with session.use("a"):
        assert torch.equal(
            base.generate(**given, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3), wanted
        )


def test_what_no_column_can_be_found_for_is_refused(base, session):
    given, ids = prompt(), prompt()["input_ids"]
    embedded = base.get_input_embeddings()(ids)
    packed = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    with session.use("a"):
        with pytest.raises(RefusedError, match="no token ids, but embeddings"):
            base(inputs_embeds=embedded)
        with pytest.raises(RefusedError, match="several texts are packed"):
            base(input_ids=ids[:1], position_ids=packed)
        with pytest.raises(RefusedError, match="outside of a pass of the whole model"):
            base.model(ids)
    with session.use(None):
        cache = base(inputs_embeds=embedded[:, :6], use_cache=True).past_key_values
    with session.use("a"), pytest.raises(RefusedError, match="ids of the tokens before are not known"):
        base(**part(given, 6, 12), past_key_values=cache)
    assert torch.isfinite(logits(base, **given)).all()


def test_sums_are_the_sums_of_what_each_does(base, several):
    """The deltas of one layer, so that what leaves it is linear in them."""
    given = prompt()
    given["input_ids"][:, 10:12] = torch.tensor([9, 10])
    seen = {}
    module = base.model.layers[0].self_attn.q_proj

    def answer(choice):
        handle = module.register_forward_hook(lambda _, __, y: seen.update(y=y.detach().clone()))
        with several.use(choice):
            logits(base, **given)
        handle.remove()
        return seen["y"]

    plain = answer(None)
    changes = {name: answer(name) - plain for name in several.adapters}
    weights = {"a": 0.5, "other": -0.25, "plain": 2.0}
    wanted = plain + sum(weight * changes[name] for name, weight in weights.items())
    torch.testing.assert_close(answer(weights), wanted, atol=TOLERANCE, rtol=0)
    assert not changes["a"][0, :7].any()
    assert not changes["other"][:, :10].any()
    assert changes["plain"].any()


def test_rows_of_their_own(base, several):
    given = prompt()
    given["input_ids"][0, 10:12] = torch.tensor([9, 10])
    rows = ["other", "a", "plain", None]
    with several.route(rows):
        found = logits(base, **given)
        generated = base.generate(given["input_ids"][:2].repeat(2, 1), max_new_tokens=4, do_sample=False)
    for row, name in enumerate(rows):
        with several.use(name):
            alone = {key: value[row : row + 1] for key, value in given.items()}
            close(alone, found[row : row + 1], logits(base, **alone))
            ids = given["input_ids"][:2].repeat(2, 1)[row : row + 1]
            assert torch.equal(base.generate(ids, max_new_tokens=4, do_sample=False), generated[row : row + 1])


def test_what_overflows_in_a_row_that_is_not_invoked_stays_outside(base, session):
    given, seen = prompt(), []
    module = base.model.layers[0].self_attn.v_proj
    x = torch.zeros(4, 12, 32)
    x[2, :, 0] = float("inf")
    plain = module(x)
    handle = base.model.register_forward_pre_hook(lambda *_: seen.append(module(x)))
    with session.use("a"):
        logits(base, **given)
    with session.use("a"), pytest.MonkeyPatch.context() as forced:  # the same, were it invoked
        forced.setitem(given, "input_ids", given["input_ids"].index_copy(0, torch.tensor([2]), given["input_ids"][:1]))
        logits(base, **given)
    handle.remove()
    assert torch.equal(seen[0], plain)
    assert seen[1][2].isnan().any()


def test_gradients_are_those_of_a_dense_sum(base, made, session):
    given, found = prompt(), {}
    leaf = base.get_input_embeddings().weight.detach().clone().requires_grad_()
    handle = base.get_input_embeddings().register_forward_hook(lambda _, args, __: leaf[args[0]])
    with session.use("a"):
        base(**given).logits.square().mean().backward()
    found, leaf.grad = leaf.grad, None
    acts = (torch.arange(12) >= torch.tensor([7, 6, 12, 6])[:, None])[..., None]
    handles = [handle]
    for name, module in made[1].get_base_model().named_modules():
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A:
            delta = module.get_delta_weight("default").detach()
            own = base.get_submodule(name)
            add = lambda _, args, y, delta=delta: y + acts * (args[0] @ delta.T)  # noqa: E731
            handles.append(own.register_forward_hook(add))
    base(**given).logits.square().mean().backward()
    for one in handles:
        one.remove()
    assert len(handles) == 10
    assert leaf.grad.abs().max() > 1e-4
    torch.testing.assert_close(found, leaf.grad, atol=1e-6, rtol=1e-4)


def test_what_a_session_does_not_do_with_it(base, made, session):
    with pytest.raises(RefusedError, match="not trained here"):
        session.parameters("a")
    with pytest.raises(RefusedError, match="an activated LoRA, which acts from its invocation tokens on"):
        adaptrix.attach(tiny(), {"a": made[0]}, slots=2)


def test_checkpointing_is_refused(made):
    model = tiny().train()
    model.gradient_checkpointing_enable()
    attached = adaptrix.attach(model, {"a": made[0]})
    with attached as session, session.use("a"), pytest.raises(RefusedError, match="recomputed in the backward pass"):
        model(**prompt())


def invoking(folder, **edits):
    """A saved adapter with invocation tokens in its config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "alora_invocation_tokens": INVOCATION, **edits}))
    return folder


@pytest.mark.parametrize(
    ("options", "edits", "said"),
    [
        ({"use_dora": True}, {}, "no plain LoRA"),
        ({"target_modules": ["embed_tokens"]}, {}, "no plain LoRA"),
        ({}, {"alora_invocation_tokens": [5, "6"]}, "a list of token numbers"),
        ({}, {"alora_invocation_tokens": [5, -6]}, "a list of token numbers"),
        ({}, {"alora_invocation_tokens": 5}, "a list of token numbers"),
        ({}, {"alora_invocation_tokens": [5, 48]}, r"\[48\] are none of the model's 48"),
    ],
)
def test_adapters_that_peft_cannot_run_either(options, edits, said, base, tmp_path):
    adapter(base, tmp_path, tokens=None, **options)
    with pytest.raises(RefusedError, match=said):
        adaptrix.attach(base, {"a": invoking(tmp_path, **edits)})


def test_a_trained_head_beside_it_is_refused(base, tmp_path):
    adapter(base, tmp_path, modules_to_save=["lm_head"])
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(RefusedError, match="it would act before the invocation"):
        adaptrix.attach(base, {"a": tmp_path})


def test_a_model_that_continues_no_text_is_refused(made):
    with pytest.raises(RefusedError, match="does not continue the text"):
        adaptrix.attach(tiny().model, {"a": made[0]})


@pytest.mark.parametrize("measure", [True, False])
def test_drift_is_measured_where_it_acts(measure, base, made):
    given = prompt()
    with adaptrix.attach(base, {"a": made[0]}, measure=measure) as session, session.use("a"):
        close(given, logits(base, **given), logits(made[1], **given))
