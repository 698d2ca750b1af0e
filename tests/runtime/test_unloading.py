"""What loading, unloading and detaching leave behind: nothing lost, nothing kept, nobody waiting for himself."""

import copy
import gc
import sys
import threading
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from adaptrix.runtime.slots import Bank
from tests.helpers.attached import hook_count, logits, saved
from tests.helpers.families import tiny_model
from tests.helpers.slots import chosen

LONG = torch.randint(0, 40, (2, 20), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama")
    saved(base, folder / "a", seed=1, rank=3, target_modules=["q_proj", "k_proj", "down_proj"])
    saved(base, folder / "b", seed=2, rank=5, target_modules=["q_proj", "v_proj", "o_proj"])
    return {"a": folder / "a", "b": folder / "b"}


@pytest.fixture
def model():
    return tiny_model("llama").eval()


def first_factor(session, name):
    return weakref.ref(next(iter(session._adapters._loaded[name].kernels.values())).At)


def test_rows_of_adapters_loaded_before_and_after_a_cast(model, folders):
    model.bfloat16()
    with attach(model, {"a": folders["a"]}) as session:
        model.float()
        session.load("b", folders["b"])
        alone = {}
        for name in "ab":
            with session.use(name):
                alone[name] = logits(model, input_ids=LONG)
        with session.route(["a", "b"]):
            mixed = logits(model, input_ids=LONG)
        for row, name in enumerate("ab"):
            torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-3, rtol=1e-3)


def test_adapters_loaded_by_many_threads_are_all_there(model, folders):
    interval = sys.getswitchinterval()
    with attach(model, folders) as session:
        kernels, gate = session._adapters._loaded["a"].kernels, threading.Barrier(8)

        def work(worker):
            gate.wait(10)
            for turn in range(300):
                session.adopt(f"{worker} {turn}", kernels)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert len(session.adapters) == 2 + 8 * 300


@pytest.mark.parametrize("options", [{}, {"slots": 2}])
def test_nobody_waits_for_himself_to_unload(model, folders, options):
    caught = []

    def unload(session):
        with session.use("a"):
            try:
                session.unload("a")
            except UsageError as error:
                caught.append(error)

    with attach(model, folders, **options) as session:
        thread = threading.Thread(target=unload, args=(session,), daemon=True)
        thread.start()
        thread.join(10)
        assert "this thread uses it" in str(caught[0])
        assert session.adapters == ("a", "b")
        session.unload("a")


def test_old_versions_are_not_kept(model, folders):
    with attach(model, folders) as session:
        old = []
        for choice in ("a", {"a": 0.5, "b": 0.5}):
            with session.use(choice):
                logits(model)
            old.append(first_factor(session, "a"))
            session.load("a", folders["a"])
        gc.collect()
        assert [ref() for ref in old] == [None, None]


def test_an_old_version_in_a_slot_stays_for_its_users(model, folders):
    with attach(model, folders, slots=2) as session, session.use("a"):
        before = logits(model)
        session.load("a", folders["b"])
        assert torch.equal(logits(model), before)
        with session.use("a"):
            assert not torch.equal(logits(model), before)


def test_detaching_gives_the_slots_back(model, folders):
    session = attach(model, folders, slots=2)
    with session.use("a"):
        logits(model)
    bank = weakref.ref(next(iter(session._slots.banks.values())).At)
    session.detach()
    assert bank() is None
    assert session.report().paged == 1


def test_what_was_made_in_inference_mode_has_gradients_outside(model, folders):
    embedded = model.get_input_embeddings()(LONG).detach().requires_grad_()

    def gradient(session, choice):
        embedded.grad = None
        with chosen(session, choice):
            model(inputs_embeds=embedded).logits.square().sum().backward()
        return embedded.grad

    with torch.inference_mode():
        session = attach(model, folders)
    with session:
        for choice in ("a", {"a": 0.5, "b": -0.3}, ["a", "b"]):
            with torch.inference_mode(), chosen(session, choice):
                logits(model, input_ids=LONG)
            assert gradient(session, choice).isfinite().all()
        with torch.inference_mode():
            leaves = session.parameters("b")
        gradient(session, "b")
        assert all(leaf.grad is not None for leaf in leaves)


def test_an_attach_that_runs_out_of_memory_leaves_no_hook(model, folders):
    with pytest.raises(RuntimeError, match="memory"):
        attach(model, folders, slots=2, max_rank=10**13)
    assert hook_count(model) == 0


def test_what_is_trained_is_not_said_to_be_unknown_after_detach(model, folders):
    with attach(model, folders) as session:
        session.parameters("a")
    for ask in (session.adapter, session.parameters):
        with pytest.raises(UsageError, match="detached"):
            ask("a")


def test_ctrl_c_in_a_checkpointed_pass_leaves_autograd_alone(model, folders):
    def interrupt(*_):
        raise KeyboardInterrupt

    model.train().gradient_checkpointing_enable()
    model.model.layers[1].register_forward_pre_hook(interrupt)
    with attach(model, folders) as session:
        session.parameters("a")
        session.activate("a")
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=LONG)
    leaf = torch.ones(3, requires_grad=True)
    leaf.square().sum().backward()
    assert leaf.grad.tolist() == [2, 2, 2]


def test_adapters_of_an_unknown_family_have_modules_of_their_own(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 34, "vocab_size": 50, "num_hidden_layers": 2}
    config = Olmo2Config(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    adapted = {name: saved(model, tmp_path / name, target_modules=[name]) for name in ("q_proj", "v_proj")}
    with attach(model, {name: tmp_path / name for name in adapted}) as session, torch.no_grad():
        for name, one in adapted.items():
            with session.use(name):
                torch.testing.assert_close(logits(model, input_ids=LONG), one(input_ids=LONG).logits)


def test_an_interrupt_on_the_way_into_a_slot_loses_no_slot(model, folders, monkeypatch):
    turns, put = iter(range(3)), Bank.put

    def interrupted(*given):
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return put(*given)

    with attach(model, folders, slots=1) as session:
        monkeypatch.setattr(Bank, "put", interrupted)
        with pytest.raises(KeyboardInterrupt), session.use("a"):
            pass
        monkeypatch.undo()
        buffers = [buffer for bank in session._slots.banks.values() for buffer in (bank.At, bank.Bt, bank.g1, bank.c)]
        assert not any(buffer.any() for buffer in buffers)
        with session.use("b"):
            assert session.report().paged == 1


def test_few_copies_are_remembered(model, folders):
    """Sums and routes copy the factors of all their adapters: a server with many would run out of memory."""
    with attach(copy.deepcopy(model), folders) as session:
        for turn in range(20):
            with session.use({"a": turn + 0.5, "b": 1.0}), session.route(["a", "b", None] * (turn + 1)):
                pass
        assert len(session._adapters._selector._copies) <= 4


def test_a_sum_is_the_same_in_whatever_order_it_is_written(model, folders):
    adapted = copy.deepcopy(model)
    with attach(adapted, folders) as session:
        cache = session.new_cache()
        for choice in ({"a": 0.5, "b": 0.25}, {"b": 0.25, "a": 0.5}):
            with session.use(choice), torch.no_grad():
                adapted(torch.tensor([[1, 2]]), past_key_values=cache)
        assert cache.get_seq_length() == 4


def test_a_cache_keeps_what_the_adapters_it_is_for_leave_alone(tmp_path):
    """An adapter of the lowest layers that is loaded, and not meant, costs nothing."""
    model = tiny_model("llama").eval()
    last = model.config.num_hidden_layers - 1
    for name, layers in (("low", [0]), ("upper", [last]), ("top", [last])):
        saved(model, tmp_path / name, target_modules=["q_proj"], layers_to_transform=layers)
    with attach(model, {name: tmp_path / name for name in ("low", "upper", "top")}) as session, torch.no_grad():
        for names, kept in (((), 0), (("upper", "top"), last)):
            cache = session.new_cache(*names)
            with session.use("upper"):
                model(torch.tensor([[1, 2, 3]]), past_key_values=cache)
            assert session.swap("top", cache).kept == kept
            session.activate(None)


def test_a_trained_head_follows_a_model_that_is_cast(tmp_path):
    model = tiny_model("llama").eval()
    saved(model, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with attach(model, {"a": tmp_path / "a"}) as session, session.use("a"), torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3]])).logits
        model.bfloat16()
        found = model(torch.tensor([[1, 2, 3]])).logits
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.2, rtol=0.1)


def test_slots_of_another_dtype_take_nothing(model, folders):
    adapted = copy.deepcopy(model).bfloat16()
    with attach(adapted, folders, slots=2) as session:
        adapted.float()
        with pytest.raises(RefusedError, match="the model was cast"):
            session.load("c", folders["a"])
    with pytest.raises(UsageError, match="without slots"):
        attach(adapted, folders, max_rank=8)


def test_a_module_that_was_put_in_the_place_of_another_is_noticed(model, tmp_path):
    """Growing the vocabulary makes a new head, without the hook: its adapter would be gone without a word."""
    saved(model, tmp_path / "head", seed=1, target_modules=["o_proj", "lm_head"])
    saved(model, tmp_path / "body", seed=2, target_modules=["o_proj", "v_proj"])
    other = copy.deepcopy(model.model.layers[1])
    with attach(model, {"head": tmp_path / "head", "body": tmp_path / "body"}) as session, torch.no_grad():
        with session.use("head"):
            model(LONG)
        model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
        for choice in ("head", {"head": 0.5, "body": 0.5}, ["body", "head"]):
            with chosen(session, choice), pytest.raises(RefusedError, match="lm_head: the model has another module"):
                model(LONG)
        with session.use("body"):
            model(LONG)
        model.model.layers[1] = other
        with session.use("body"), pytest.raises(RefusedError) as refused:
            model(LONG)
        names = {problem.where for problem in refused.value.problems}
        assert names == {f"model.layers.1.self_attn.{name}" for name in ("o_proj", "v_proj")}
        assert model(LONG).logits.isfinite().all()
        session.load("again", tmp_path / "head")
        with session.use("again"), pytest.raises(RefusedError, match="lm_head"):
            model(LONG)
