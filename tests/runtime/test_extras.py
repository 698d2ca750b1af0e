"""Biases, trained heads and modules saved whole on a live model, with peft as the judge."""

import copy
import warnings

import peft
import pytest
import torch

import adaptrix
from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.attached import hook_count, inputs, logits
from tests.helpers.extras import assert_as_under_peft, classifier, near, saved, tied
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import rewrite, trained
from tests.helpers.sampling import crossed

BIASED = {
    "gpt2": ["c_attn", "c_proj"],
    "qwen2": ["q_proj", "o_proj"],
    "gpt_neox": ["query_key_value"],
    "falcon": ["query_key_value"],
    "bloom": ["dense_h_to_4h"],
    "opt": ["q_proj", "fc1"],
    "distilbert": ["q_lin"],
}


@pytest.mark.parametrize(("family", "trains"), crossed(sorted(BIASED), ["lora_only", "all"]))
def test_biases_are_those_of_the_adapter(family, trains, tmp_path):
    model = trained(tiny_model(family)).eval()  # fresh biases are zeros
    adapted = saved(model, tmp_path, target_modules=BIASED[family], bias=trains)
    assert_as_under_peft(model, tmp_path, adapted)


def test_a_bias_beside_dora_is_not_scaled(tmp_path):
    model = trained(tiny_model("qwen2")).eval()
    adapted = saved(model, tmp_path, target_modules=["q_proj", "v_proj"], bias="lora_only", use_dora=True)
    assert_as_under_peft(model, tmp_path, adapted)


def test_a_weighted_sum_of_biases_is_the_base_and_weighted_differences(tmp_path):
    model = trained(tiny_model("gpt2")).eval()
    weights = {"a": 0.7, "b": -0.4}
    options = {"a": {"target_modules": ["c_attn"]}, "b": {"target_modules": ["c_proj"], "r": 2}}
    adapted = {name: saved(model, tmp_path / name, seed=i, bias="all", **options[name]) for i, name in enumerate("ab")}
    summed = copy.deepcopy(model).state_dict()
    for name, weight in weights.items():
        whole = adapted[name].merge_and_unload().state_dict()
        summed = {key: tensor + weight * (whole[key] - model.state_dict()[key]) for key, tensor in summed.items()}
    oracle = copy.deepcopy(model)
    oracle.load_state_dict(summed)
    with attach(model, {name: tmp_path / name for name in weights}) as session, session.use(weights):
        assert near(logits(model), logits(oracle))


@pytest.mark.parametrize(
    ("family", "saves"),
    [("llama", ["score"]), ("gpt2", ["score"]), ("bert", ["classifier"]), ("roberta", ["classifier"])],
)
def test_a_trained_head_takes_the_place_of_the_models(family, saves, tmp_path):
    model = classifier(family)
    targets = {"gpt2": ["c_attn"], "llama": ["q_proj"]}.get(family, ["query", "value"])
    adapted = saved(model, tmp_path, target_modules=targets, modules_to_save=saves, task_type="SEQ_CLS")
    sites = assert_as_under_peft(model, tmp_path, adapted)
    assert any(site.startswith("classifier") for site in sites)


def test_a_trained_head_among_trained_biases(tmp_path):
    """peft then saves the head's bias three times: the trained one, the same again, and the original's."""
    model = trained(classifier("bert")).eval()
    keys = {"bias": "all", "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    adapted = saved(model, tmp_path, target_modules=["query", "value"], **keys)
    assert_as_under_peft(model, tmp_path, adapted)


@pytest.mark.parametrize("saves", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_and_heads_saved_whole(tie, saves, tmp_path):
    model = tied(tie=tie)
    adapted = saved(model, tmp_path, target_modules=["q_proj"], modules_to_save=saves)
    assert_as_under_peft(model, tmp_path, adapted)


def test_tied_weights_that_peft_ties_again(tmp_path):
    model = tied(tie=True)
    keys = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapted = saved(model, tmp_path, target_modules=["q_proj"], **keys)
    assert_as_under_peft(model, tmp_path, adapted)


def with_its_embeddings(model, folder):
    """An adapter whose base had other embeddings, saved with these though no config names them."""
    other = copy.deepcopy(model)
    trained(other.get_input_embeddings(), 3)
    adapted = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder, save_embedding_layers=True)
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_that_peft_saved_unasked(tie, tmp_path):
    model = tied(tie=tie)
    assert_as_under_peft(model, tmp_path, with_its_embeddings(model, tmp_path))


def test_one_weight_of_two_modules_says_whose_it_replaces(tmp_path):
    model = tied(tie=True)
    with_its_embeddings(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if "lm_head" not in name})
    with pytest.raises(RefusedError, match=r"embed_tokens\.weight and lm_head\.weight") as caught:
        attach(model, {"x": tmp_path})
    assert [problem.code for problem in caught.value.problems] == ["tied"]


@pytest.mark.parametrize(
    ("family", "saves"), [("gemma3_text", ["embed_tokens"]), ("llama", ["norm"]), ("gpt2", ["ln_2", "c_proj"])]
)
def test_any_module_of_one_input_can_be_replaced(family, saves, tmp_path):
    """Gemma's embedding multiplies what it looks up; norms have no role; GPT-2's c_proj is a Conv1D."""
    model = tied(family, tie=True)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj"]
    adapted = saved(model, tmp_path, target_modules=targets, modules_to_save=saves)
    assert_as_under_peft(model, tmp_path, adapted)


def test_rows_may_replace_a_module_adapt_it_or_leave_it(tmp_path):
    model = classifier("llama")
    adapted = {
        "head": saved(model, tmp_path / "head", target_modules=["q_proj"], modules_to_save=["score"]),
        "other": saved(model, tmp_path / "other", seed=2, target_modules=["v_proj"], modules_to_save=["score"]),
        "lora": saved(model, tmp_path / "lora", seed=3, target_modules=["score", "k_proj"]),
    }
    rows = ["lora", None, "head", "other", "head"]
    given = inputs(model, len(rows))
    with attach(model, {name: tmp_path / name for name in adapted}) as session, session.route(rows):
        mixed = logits(model, **given)
    for row, name in enumerate(rows):
        assert near(mixed[row], logits(adapted[name] if name else model, **given)[row]), (row, name)


def test_replaced_modules_have_no_weighted_sum(tmp_path):
    model = classifier("llama")
    adapted = saved(model, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["score"])
    saved(model, tmp_path / "b", target_modules=["score"])
    saved(model, tmp_path / "c", target_modules=["v_proj"])
    base = logits(model)
    with attach(model, {name: tmp_path / name for name in "abc"}) as session:
        for choice in ({"a": 0.5}, {"a": 1.0, "b": 1.0}):
            with pytest.raises(UsageError, match="no weighted sum") as caught, session.use(choice):
                pass
            assert caught.value.problems[0].where == "classifier"
        assert torch.equal(logits(model), base)
        with session.use({"a": 1.0}):
            assert near(logits(model), logits(adapted))
        with session.use({"a": 1.0, "c": 0.5}):
            both = logits(model)
    assert not near(both, logits(adapted))


def test_a_swapped_cache_knows_of_replaced_norms_and_embeddings(tmp_path):
    """A norm of layer 1 leaves layer 0 of a cache alone, an embedding does not."""
    model = tied(tie=False)
    given = inputs(model)["input_ids"]
    for saves, kept in ((["layers.1.input_layernorm"], 1), (["embed_tokens"], 0)):
        folder = tmp_path / saves[0]
        adapted = saved(model, folder, target_modules=["q_proj"], layers_to_transform=[2], modules_to_save=saves)
        with torch.no_grad(), attach(model, {"x": folder}) as session:
            cache = session.new_cache()
            model(given[:, :-1], past_key_values=cache)
            assert session.swap("x", cache).kept == kept
            assert near(model(given[:, -1:], past_key_values=cache).logits, logits(adapted, input_ids=given)[:, -1:])


def test_an_extra_of_a_layer_acts_where_the_plan_has_the_layer(tmp_path):
    model = trained(tiny_model("gpt2")).eval()
    saved(model, tmp_path / "a", target_modules=["c_attn"], bias="all")
    file = adaptrix.convert(tmp_path / "a", tmp_path / "a.adaptrix.safetensors", layers="1")
    with attach(model, {"a": file}) as session:
        assert "modules.transformer.ln_f" in session.report().injections
        assert "modules.transformer.h.1.ln_1" in session.report().injections
        assert "modules.transformer.h.0.ln_1" not in session.report().injections


def test_a_replaced_head_is_exact_in_half_precision(tmp_path):
    model = classifier("llama").bfloat16()
    adapted = saved(model, tmp_path, target_modules=["q_proj"], modules_to_save=["score"], layers_to_transform=[0])
    hidden = torch.randn(2, 5, model.config.hidden_size).bfloat16()
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        found = model.score(hidden)
    assert torch.equal(found, adapted.base_model.model.score(hidden))


@pytest.mark.parametrize(("limit", "wanted"), [(0.0, "base"), (1e6, "adapted")])
def test_drift_bounds_a_replaced_head_as_any_module(limit, wanted, tmp_path):
    model = classifier("llama")
    adapted = saved(model, tmp_path, target_modules=["q_proj"], modules_to_save=["score"])
    answers = {"base": logits(model), "adapted": logits(adapted)}
    with attach(model, {"x": tmp_path}, max_drift=limit) as session, session.use("x"):
        assert near(logits(model), answers[wanted])


def tokens(model, folder):
    saved(model, folder, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5]})


def resized(model, folder):
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(model.config.vocab_size + 2)
    saved(grown, folder, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])


def another_base(model, folder):
    saved(trained(copy.deepcopy(model)), folder, target_modules=["embed_tokens"])


def many_parts(model, folder):
    """RobertaLMHead has a bias of its own for its decoder to share: its forward pass does not say so."""
    saved(model, folder, target_modules=["query"], bias="all")


def two_inputs(model, folder):
    """OPT's positions come from a mask and the length of a cache."""
    saved(model, folder, target_modules=["q_proj"], modules_to_save=["embed_positions"])


def another_class(model, folder):
    saved(classifier("llama"), folder, target_modules=["q_proj"], modules_to_save=["score"])


def not_finite(model, folder):
    saved(model, folder, target_modules=["q_proj"], modules_to_save=["lm_head"])
    rewrite(folder, lambda t: {n: torch.full_like(x, torch.nan) if "lm_head" in n else x for n, x in t.items()})


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (tokens, "extra-unsupported", "trained rows of an embedding"),
        (resized, "shape", "resize_token_embeddings"),
        (another_base, "extra-unsupported", "the base's own weight"),
        (another_class, "module-missing", "no such parameter"),
        (many_parts, "extra-unsupported", "one input and one output"),
        (two_inputs, "extra-unsupported", "one input and one output"),
        (not_finite, "nonfinite", "NaN"),
    ],
)
def test_what_no_hook_can_serve_is_refused_by_name(make, code, said, tmp_path):
    others = {many_parts: "roberta", two_inputs: "opt"}
    model = trained(tiny_model(others[make])).eval() if make in others else tied(tie=False)
    base, hooks = logits(model), hook_count(model)
    make(model, tmp_path)
    with pytest.raises(RefusedError, match=said) as caught:
        attach(model, {"x": tmp_path})
    assert {problem.code for problem in caught.value.problems} == {code}
    assert hook_count(model) == hooks
    assert torch.equal(logits(model), base)
