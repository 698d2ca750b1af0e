"""A compiled model with adapters: one graph, whatever is in force."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaForCausalLM

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.attached import inputs, saved
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.slots import VARIANTS, answer, chosen, made


@pytest.fixture(scope="module")
def model():
    """Of two layers: tracing takes its time for each."""
    config = tiny_config("llama")
    config._attn_implementation, config.num_hidden_layers = "eager", 2
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    return made(model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def pair(model, adapters):
    """A session without slots, and one of two slots, on twins of a model."""
    torch.compiler.reset()
    plain, slotted = copy.deepcopy(model), copy.deepcopy(model)
    with attach(plain, adapters) as reference, attach(slotted, adapters, slots=2) as session:
        yield (plain, reference), (slotted, session)


def test_one_graph_for_any_number_of_swaps(pair):
    (plain, reference), (slotted, session) = pair
    counters.clear()
    session.compile(backend="aot_eager", fullgraph=True)
    for choice in ["a", "b", None, "c", "d", {"a": 0.7, "d": -0.4}] * 4:
        with session.use(choice), reference.use(choice):
            torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    for rows in (["a", None, "b", "a"], ["c", "d", "d", "c"], [None, None, "a", "b"]):
        with session.route(rows), reference.route(rows):
            torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    session.activate("d")
    reference.activate("d")
    torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)
    session.detach()
    assert "forward" not in vars(slotted)
    with reference.use(None):
        assert torch.equal(answer(slotted), answer(plain))


def test_threads_share_a_compiled_model(pair):
    (plain, reference), (slotted, session) = pair
    session.compile(backend="eager")
    alone = {}
    for name in VARIANTS:
        with reference.use(name):
            alone[name] = answer(plain)

    def work(worker):
        wrong = 0
        for turn in range(20):
            name = [*VARIANTS][(worker + turn) % 4]
            with session.use(name):
                wrong += not torch.allclose(answer(slotted), alone[name], atol=1e-5)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 0


@pytest.mark.slow
def test_a_compiled_model_generates(pair):
    (plain, reference), (slotted, session) = pair
    session.compile(backend="aot_eager", dynamic=True)
    tokens = inputs(plain)["input_ids"]
    for name in ("a", "c"):
        with session.use(name), reference.use(name):
            expected = plain.generate(tokens, max_new_tokens=4, do_sample=False)
            assert torch.equal(slotted.generate(tokens, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.slow
def test_a_model_that_its_owner_compiles_later_is_right_without_slots(pair):
    (plain, reference), (slotted, session) = pair
    with pytest.raises(UsageError, match="slots=8"):
        reference.compile()
    theirs = torch.compile(plain, backend="eager")
    for choice in ("a", None, ["a", None, "b", "a"]):
        with chosen(reference, choice), chosen(session, choice):
            torch.testing.assert_close(answer(theirs), answer(slotted), atol=1e-5, rtol=1e-5)


def test_embeddings_and_heads_compile(tmp_path):
    torch.compiler.reset()
    model = tiny_model("llama").eval()
    options = {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}
    adapted = {name: saved(model, tmp_path / name, seed=seed, **options) for seed, name in enumerate("ab")}
    with attach(model, {name: tmp_path / name for name in adapted}, slots=1) as session:
        session.compile(backend="aot_eager", fullgraph=True)
        for name in "aba":
            with session.use(name), torch.no_grad():
                expected = adapted[name](**inputs(model)).logits
                torch.testing.assert_close(model(**inputs(model)).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_loaded_after_compiling_acts(model, pair, tmp_path):
    (plain, reference), (slotted, session) = pair
    saved(model, tmp_path, seed=9, rank=4, target_modules=["q_proj", "up_proj"])
    session.compile(backend="eager")
    with session.use("a"):
        answer(slotted)
    for one in (session, reference):
        one.load("new", tmp_path)
    for choice in ("new", "a", None, "new"):
        with session.use(choice), reference.use(choice):
            torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)


def test_rows_that_no_batch_divides_into_are_refused_in_a_graph_too(pair):
    """Four rows of six tokens are three rows of eight, to who does not look."""
    _, (slotted, session) = pair
    session.compile(backend="eager")
    with session.route(["a", "b", None]), pytest.raises(UsageError, match="3 adapters for a batch of 4"):
        answer(slotted)


def test_a_compiled_model_is_compiled_once_and_attached_to_no_more(pair, adapters):
    _, (slotted, session) = pair
    session.compile(backend="eager")
    for again in (session.compile, lambda: attach(slotted, adapters)):
        with pytest.raises(RefusedError, match="compiled"):
            again()
    session.detach()
    slotted.forward = torch.compile(slotted.forward, backend="eager")
    with pytest.raises(RefusedError, match="compiled"):
        attach(slotted, adapters)


@pytest.mark.slow
def test_a_compilation_that_fails_changes_nothing(pair):
    (plain, reference), (slotted, session) = pair
    with pytest.raises(TypeError):
        session.compile(bogus=True)
    theirs = torch.compile(slotted, backend="eager")
    with session.use("a"), reference.use("a"):
        torch.testing.assert_close(answer(theirs), answer(plain), atol=1e-5, rtol=1e-5)
