"""What is refused on a live model: every plausible mistake is named, says what to do, and changes nothing."""

import copy
import math
import warnings
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import adaptrix
from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.attaching import attach
from adaptrix.delta import LowRank
from adaptrix.errors import AdaptrixError, RefusedError, UsageError
from adaptrix.tensor import Tensor
from tests.helpers.attached import hook_count, inputs, logits, saved
from tests.helpers.families import tiny_config, tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama").eval()


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """Sound adapters a and b, and some that are not for this model."""
    folder = tmp_path_factory.mktemp("refused")
    saved(llama, folder / "a", seed=1, target_modules=["q_proj", "down_proj"])
    saved(llama, folder / "b", seed=2, rank=5, target_modules=["v_proj"])
    saved(tiny_model("gpt2"), folder / "gpt2", target_modules=["c_attn"])
    saved(model_of(hidden_size=36, head_dim=6), folder / "wide", target_modules=["q_proj"])
    saved(model_of(num_hidden_layers=5), folder / "deep", target_modules=["q_proj"])
    experts = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    peft.get_peft_model(tiny_model("mixtral"), experts).save_pretrained(folder / "experts")
    return folder


def model_of(**changes):
    config = tiny_config("llama")
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).eval()


def in_memory(name, A, B, path="model.layers.0.self_attn.q_proj"):
    """An adapter that came from no file, so that nothing has looked at it."""
    delta = LowRank(*(Tensor.of(np.asarray(factor, dtype=np.float32)) for factor in (A, B)), alpha=1.0)
    deltas = MappingProxyType({Target(path): delta})
    return Adapter(name, deltas, MappingProxyType({}), Provenance("memory", "made"))


def assert_said(error, code):
    """Every problem says where, what, what would be right, and what to do."""
    assert {problem.code for problem in error.problems} == {code}
    for problem in error.problems:
        assert problem.where, problem
        assert problem.found, problem
        assert problem.expected, problem
        assert problem.remedy, problem


CHOICES = {
    "an unknown name": ("z", "adapter-unknown"),
    "an empty name": ("", "option"),
    "an unknown name among weights": ({"a": 1.0, "z": 1.0}, "adapter-unknown"),
    "a number": (3, "option"),
    "an object": (object(), "option"),
    "no weights": ({}, "option"),
    "weights of text": ({"a": "0.5"}, "option"),
    "weights of None": ({"a": None}, "option"),
    "weights of nobody": ({None: 1.0}, "option"),
    "NaN": ({"a": math.nan}, "option"),
    "Inf": ({"a": 1.0, "b": -math.inf}, "option"),
    "a number too large for a float": ({"a": 10**400}, "option"),
    "a complex number": ({"a": 1j}, "option"),
    "a tensor of one number": ({"a": torch.tensor(0.5)}, "option"),
    "a tensor of several": ({"a": torch.ones(2)}, "option"),
}
ROWS = {
    "text that is a name": ("a", "route"),
    "text": ("aab", "route"),
    "weights for rows": ({"a": 1.0}, "route"),
    "weights in a row": ([{"a": 1.0}, None, None], "route"),
    "a set": ({"a", "b"}, "route"),
    "no rows": ([], "route"),
    "None": (None, "route"),
    "a number": (3, "route"),
    "numbers": ([0, 1, 2], "route"),
    "an unknown name": (["a", "z", None], "adapter-unknown"),
}


@pytest.fixture
def session(llama, folder):
    with attach(llama, {name: folder / name for name in "ab"}) as opened:
        opened.activate("b")
        yield opened


@pytest.fixture
def unchanged(llama, session):
    """Whatever a test tries: the hooks, the adapters and what the model answers stay."""
    before = hook_count(llama), session.adapters, logits(llama)
    yield
    assert (hook_count(llama), session.adapters) == before[:2]
    assert torch.equal(logits(llama), before[2])


@pytest.mark.parametrize("way", ["use", "activate", "swap"])
@pytest.mark.parametrize("case", CHOICES)
def test_a_choice_that_is_none(case, way, session, unchanged):
    choice, code = CHOICES[case]
    ways = {
        "use": lambda: session.use(choice).__enter__(),
        "activate": lambda: session.activate(choice),
        "swap": lambda: session.swap(choice, session.new_cache()),
    }
    with pytest.raises(UsageError) as caught:
        ways[way]()
    assert_said(caught.value, code)


@pytest.mark.parametrize("case", ROWS)
def test_a_route_that_is_none(case, session, unchanged):
    rows, code = ROWS[case]
    with pytest.raises(UsageError) as caught, session.route(rows):
        pass
    assert_said(caught.value, code)


def test_all_wrong_weights_and_rows_are_named_at_once(session, unchanged):
    with pytest.raises(UsageError) as caught:
        session.activate({"a": math.nan, "b": "much", "z": 1.0})
    assert [problem.where for problem in caught.value.problems] == ["weights['a']", "weights['b']"]
    with pytest.raises(UsageError) as caught, session.route([0, "a", 2.5]):
        pass
    assert [problem.where for problem in caught.value.problems] == ["row 0", "row 2"]


def test_a_list_for_a_choice_is_told_of_route(session, unchanged):
    with pytest.raises(UsageError, match=r"session\.route takes a list"):
        session.activate(["a", "b"])


def test_numbers_of_numpy_are_weights(llama, session):
    with session.use({"a": 0.5}):
        wanted = logits(llama)
    with session.use({"a": np.float32(0.5)}):
        assert torch.equal(logits(llama), wanted)


@pytest.mark.parametrize("rows", [["a", "b"], ["a", "b", None, "a"], ["a"] * 6])
def test_a_route_of_another_length_than_the_batch(rows, llama, session, unchanged):
    with pytest.raises(UsageError) as caught, session.route(rows):
        logits(llama, **inputs(llama, 3))
    assert_said(caught.value, "route")


@pytest.mark.parametrize(
    ("name", "code"), [("z", "adapter-unknown"), (None, "option"), (["a"], "option"), ("", "option"), ("b", "in-use")]
)
def test_unloading_what_cannot_be(name, code, session, unchanged):
    with pytest.raises(UsageError) as caught:
        session.unload(name)
    assert_said(caught.value, code)


@pytest.mark.parametrize("name", [3, "", None, ("a",)])
def test_names_that_are_none(name, llama, folder, session, unchanged):
    for load in (
        lambda: session.load(name, folder / "a"),
        lambda: attach(llama, {"a": folder / "a", name: folder / "b"}),
    ):
        with pytest.raises(UsageError) as caught:
            load()
        assert_said(caught.value, "option")


BAD_ADAPTERS = {
    "None": (lambda folder: None, "option"),
    "a number": (lambda folder: 3, "option"),
    "tensors": (lambda folder: {"lora_A": torch.ones(2)}, "option"),
    "bytes": (lambda folder: b"adapter", "option"),
    "a path that is none": (lambda folder: folder / "nothing", "file-missing"),
    "another family": (lambda folder: folder / "gpt2", "site-missing"),
    "another width": (lambda folder: folder / "wide", "shape"),
    "a deeper model": (lambda folder: folder / "deep", "shape"),
    "another family's experts": (lambda folder: folder / "experts", "site-missing"),
    "rank 0": (lambda folder: in_memory("empty", np.ones((0, 24)), np.ones((60, 0))), "rank"),
    "NaN": (lambda folder: in_memory("nan", np.full((2, 24), np.nan), np.ones((60, 2))), "nonfinite"),
    "a sum that overflows": (lambda folder: in_memory("large", np.full((2, 24), 1e300), np.ones((60, 2))), "nonfinite"),
    "problems of its own": (
        lambda folder: replace(adaptrix.load(folder / "a"), problems=(PROBLEM,)),
        "broken",
    ),
}
PROBLEM = adaptrix.Problem("broken", "there", "a hole", "none", "Mend it.")


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_does_not_fit_or_is_none(case, llama, folder, session, unchanged):
    make, code = BAD_ADAPTERS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy says that 1e300 is Inf in fp32
        adapter = make(folder)
    for load in (
        lambda: session.load("c", adapter),
        lambda: session.load("b", adapter),
        lambda: attach(llama, {"c": adapter}),
    ):
        with pytest.raises(AdaptrixError) as caught:
            load()
        assert_said(caught.value, code)


def test_the_problems_of_all_adapters_come_at_once(llama, folder, session, unchanged):
    with pytest.raises(AdaptrixError) as caught:
        attach(llama, {"a": folder / "a", "wide": folder / "wide", "no": folder / "nothing", "gpt2": folder / "gpt2"})
    assert {problem.code for problem in caught.value.problems} == {"shape", "file-missing", "site-missing"}


BAD_CALLS = {
    "no mapping": (lambda m, f: attach(m, None), "option"),
    "a path for the mapping": (lambda m, f: attach(m, f / "a"), "option"),
    "a list of pairs": (lambda m, f: attach(m, [("a", f / "a"), ("a", f / "b")]), "option"),
    "no model": (lambda m, f: attach(None, {"a": f / "a"}), "model-unsupported"),
    "the name of a model": (lambda m, f: attach("gpt2", {"a": f / "a"}), "model-unsupported"),
    "both the other way round": (lambda m, f: attach({"a": f / "a"}, m), "model-unsupported"),
    "a module without a config": (lambda m, f: attach(torch.nn.Linear(3, 3), {"a": f / "a"}), "model-unsupported"),
    "a wrapper": (lambda m, f: attach(torch.nn.DataParallel(m), {"a": f / "a"}), "model-unsupported"),
    "no policy": (lambda m, f: attach(m, {"a": f / "a"}, layers="sideways"), "policy"),
    "layers as a list": (lambda m, f: attach(m, {"a": f / "a"}, layers=[1, 2]), "option"),
    "a drift below 0": (lambda m, f: attach(m, {"a": f / "a"}, max_drift=-1.0), "option"),
    "a drift that is no number": (lambda m, f: attach(m, {"a": f / "a"}, max_drift=math.nan), "option"),
    "a drift as text": (lambda m, f: attach(m, {"a": f / "a"}, max_drift="0.1"), "option"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_call_that_cannot_be_meant(case, llama, folder, session, unchanged):
    call, code = BAD_CALLS[case]
    with pytest.raises(UsageError) as caught:
        call(llama, folder)
    assert {problem.code for problem in caught.value.problems} == {code}
    assert all(problem.expected for problem in caught.value.problems)


def wrapped(model):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def wrapped_inside(model):
    wrapped(model)
    return model


def compiled_in_place(model):
    model.compile()
    return model


def compiled_in_part(model):
    model.model.layers[0] = torch.compile(model.model.layers[0])
    return model


def on_meta(model):
    return model.to("meta")


BAD_MODELS = {
    wrapped: "model-wrapped",
    wrapped_inside: "model-wrapped",
    torch.compile: "model-wrapped",
    compiled_in_place: "model-wrapped",
    compiled_in_part: "model-wrapped",
    on_meta: "weights-not-loaded",
}


@pytest.mark.parametrize("change", BAD_MODELS, ids=lambda change: change.__name__)
def test_a_model_that_is_not_as_it_was(change, llama, folder):
    model = change(copy.deepcopy(llama))
    before = hook_count(model)
    with pytest.raises(RefusedError) as caught:
        attach(model, {"a": folder / "a"})
    assert_said(caught.value, BAD_MODELS[change])
    assert hook_count(model) == before


def test_no_adapters_yet_is_fine(llama, folder):
    base = logits(llama)
    with attach(llama, {}) as session:
        assert session.adapters == ()
        assert torch.equal(logits(llama), base)
        session.load("a", folder / "a")
        with session.use("a"):
            assert not torch.equal(logits(llama), base)


def test_after_its_end_a_session_says_so(llama, folder):
    session = attach(llama, {"a": folder / "a"})
    session.detach()
    calls = [
        lambda: session.activate("a"),
        lambda: session.activate(None),
        lambda: session.use("a").__enter__(),
        lambda: session.route(["a"]).__enter__(),
        lambda: session.load("b", folder / "b"),
        lambda: session.unload("a"),
        session.new_cache,
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert {problem.code for problem in caught.value.problems} == {"session-state"}
