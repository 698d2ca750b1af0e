"""Factors made by the caller for each row: what they do, and the gradients that come back, with peft as the judge."""

import copy

import peft
import pytest
import torch

import adaptrix
from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.double import EXACT
from tests.helpers.families import tiny_model

pytestmark = pytest.mark.numeric

ROWS, SCALE = 3, 1.7
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "gemma2": ["k_proj", "o_proj"]}


def tokens(rows=ROWS):
    return torch.randint(0, 40, (rows, 6), generator=torch.Generator().manual_seed(7))


def size(module):
    return module.weight.shape if type(module).__name__ == "Conv1D" else module.weight.T.shape


def made(model, family, rank=2, rows=ROWS):
    """Random factors, leaves of autograd, for the family's targets."""
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in TARGETS[family] and ".mlp.c_proj" not in name:
            inp, out = size(module)
            like = {"generator": generator, "dtype": module.weight.dtype}
            A, B = torch.randn(rows, rank, inp, **like), torch.randn(rows, out, rank, **like)
            pairs[name] = ((0.3 * A).requires_grad_(), (0.3 * B).requires_grad_())
    return pairs


def by_peft(model, pairs, row):
    """A peft model with a row's factors."""
    rank = next(iter(pairs.values()))[0].shape[1]
    config = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=list(pairs))
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    for path, (A, B) in pairs.items():
        module = wrapped.base_model.model.get_submodule(path)
        module.lora_A["default"].weight.data = A[row].detach().clone()
        module.lora_B["default"].weight.data = B[row].detach().clone()
    return wrapped


@pytest.mark.parametrize("family", list(TARGETS))
def test_each_row_and_its_gradients_are_pefts(family, in_double):
    model = tiny_model(family).double()
    pairs = made(model, family)
    with attach(model, {}) as session:
        with session.given(pairs, SCALE):
            logits = model(input_ids=tokens()).logits
        logits.square().sum().backward()
        assert all(count == 1 for count in session.report().injections.values())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for row in range(ROWS):
        wrapped = by_peft(model, pairs, row)
        wanted = wrapped(input_ids=tokens()[row : row + 1]).logits
        assert (logits[row] - wanted[0]).abs().max() < EXACT
        wanted.square().sum().backward()
        for path, (A, B) in pairs.items():
            module = wrapped.base_model.model.get_submodule(path)
            for ours, theirs in ((A, module.lora_A), (B, module.lora_B)):
                wanted_grad = theirs["default"].weight.grad
                assert (ours.grad[row] - wanted_grad).abs().max() < EXACT * wanted_grad.abs().max(), path


def test_gradients_go_on_into_what_made_the_factors():
    model = tiny_model("gpt2").double()  # whose norms do not go through fp32
    path = "transformer.h.1.mlp.c_fc"
    inp, out = size(model.get_submodule(path))
    seed = torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    with attach(model, {}) as session:

        def loss(seed):
            A = torch.outer(seed, torch.arange(1, 2 * inp + 1).sin()).view(4, 2, inp)[:2]
            B = torch.outer(seed, torch.arange(1, 2 * out + 1).cos()).view(4, out, 2)[2:]
            with session.given({path: (A, B)}):
                return model(input_ids=tokens(2)).logits.square().mean()

        assert torch.autograd.gradcheck(loss, seed)


def test_rows_that_lie_together_share_a_pair_and_nothing_stays_behind():
    model = tiny_model("llama")
    pairs = made(model, "llama")
    before = model(input_ids=tokens()).logits
    with attach(model, {}) as session, torch.no_grad():
        twice = tokens().repeat_interleave(2, dim=0)
        with session.given(pairs, SCALE):
            alone, together = model(input_ids=tokens()).logits, model(input_ids=twice).logits
            with session.given({path: (A * 0, B) for path, (A, B) in pairs.items()}):
                assert torch.equal(model(input_ids=tokens()).logits, before)
            with pytest.raises(UsageError, match="3 adapters for a batch of 4"):
                model(input_ids=tokens(4))
        assert (alone.repeat_interleave(2, dim=0) - together).abs().max() < 1e-5
        assert (alone - before).abs().max() > 1e-2
        assert torch.equal(model(input_ids=tokens()).logits, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_under_gradient_checkpointing_they_are_the_same(in_double):
    model = tiny_model("llama").double().train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        pairs = made(model, "llama")
        with attach(model, {}) as session:
            with session.given(pairs, SCALE):
                loss = model(input_ids=tokens()).logits.square().mean()
            loss.backward()
        found.append([factor.grad for pair in pairs.values() for factor in pair])
    for plain, again in zip(*found, strict=True):
        assert (plain - again).abs().max() < EXACT * plain.abs().max()


def test_beside_an_adapter_of_the_same_modules(tmp_path):
    model = tiny_model("llama")
    pairs = made(model, "llama")
    with attach(model, {}) as session, torch.no_grad(), session.given(pairs, SCALE):
        wanted = model(input_ids=tokens()).logits
    wrapped = by_peft(model, pairs, 0)
    wrapped.save_pretrained(tmp_path)
    with attach(model, {"own": adaptrix.load(tmp_path)}) as session, torch.no_grad():
        with session.given(pairs, SCALE):
            assert torch.equal(model(input_ids=tokens()).logits, wanted), "each module is changed once"
        with session.route(["own", None, None]):
            assert (model(input_ids=tokens()).logits[0] - wanted[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pairs: pairs.update(nowhere=next(iter(pairs.values()))), "nowhere"),
        (lambda pairs: pairs.update({next(iter(pairs)): (torch.zeros(3, 2, 5), torch.zeros(3, 6, 2))}), "q_proj"),
        (lambda pairs: pairs.update({next(iter(pairs)): (torch.zeros(3, 5), torch.zeros(6, 2))}), r"A \[rows, r, in\]"),
        (lambda pairs: pairs.update({next(iter(pairs)): (torch.zeros(2, 2, 5), torch.zeros(2, 6, 2))}), "2, 3. rows"),
        (lambda pairs: pairs.update({"model.embed_tokens": (torch.zeros(3, 2, 40), torch.zeros(3, 8, 2))}), "embed"),
        (lambda pairs: pairs.clear(), "for .* rows"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change, said):
    model = tiny_model("llama")
    pairs = made(model, "llama")
    change(pairs)
    with attach(model, {}) as session, pytest.raises(RefusedError, match=said), session.given(pairs):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_slots_have_no_room_for_them():
    model = tiny_model("llama")
    with attach(model, {}, slots=2, max_rank=4) as session, pytest.raises(UsageError, match="slot"):
        session.given(made(model, "llama")).__enter__()


def test_paths_that_the_model_has_under_other_names_are_its_own():
    model = tiny_model("llama")
    pairs = made(model, "llama")
    other = {path.replace("model.", "model.language_model.", 1): pair for path, pair in pairs.items()}
    with attach(model, {}) as session:
        with session.given(pairs, SCALE):
            own = model(input_ids=tokens()).logits
        with session.given(other, SCALE):
            assert torch.equal(model(input_ids=tokens()).logits, own)
