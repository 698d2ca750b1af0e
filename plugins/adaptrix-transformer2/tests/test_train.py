"""Training: gradients against autograd, steps against formulas, and what is the same after an interruption."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrix_transformer2 import decomposed, save
from adaptrix_transformer2.parametrisation import Kind, z_of
from adaptrix_transformer2.train import (
    Example,
    Policy,
    Trained,
    TrainingSettings,
    mean_loss,
    mean_reward,
    reinforce,
    sft,
)
from adaptrix_transformer2.train.answers import answers, chosen, log_probabilities
from adaptrix_transformer2.train.trainable import trainable_on
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

import adaptrix
from tests.helpers.double import EXACT, double
from tests.helpers.families import tiny_model

from .world import END, base, examples, right, small

SFT, RL = TrainingSettings(steps=9, batch=8, every=3), TrainingSettings(steps=9, batch=4, every=3)
POLICY = Policy(samples=3, longest=4)


@pytest.fixture
def in_double() -> Iterator[None]:
    """Models of the test are in double, and all that is computed in them."""
    with double():
        yield


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(base())


def _trained(method: str, model: Any, **options: Any) -> Trained:
    told = {"validation": examples(12, turned=True, seed=2), **options}
    if method == "sft":
        return sft(model, examples(40, turned=True), SFT, **told)
    return reinforce(model, examples(40, turned=True), right, RL, POLICY, **told)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["paper", "reference"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_gradients_are_those_of_the_formula(family: str, kind: Kind, in_double: None) -> None:
    model = tiny_model(family).double()
    parts = decomposed(model)
    pairs = [((3, 4, 5), (6, 7)), ((8, 9), (3, 3, 4))]
    with trainable_on(model, parts, kind, seed=0) as trainable:
        trainable.put([leaf + 0.3 * torch.randn(len(leaf), dtype=leaf.dtype) for leaf in trainable.leaves])
        numbers = [leaf.detach().clone().requires_grad_() for leaf in trainable.leaves]
        with trainable.acting():
            log_p, told, mask = log_probabilities(model, pairs)
        (chosen(log_p, told) * mask).sum().backward()
        trainable.pull()
        found = [leaf.grad for leaf in trainable.leaves]
    weights = {}
    for p, (path, delta) in zip(numbers, parts.spectra.items(), strict=True):
        U, Vt = (torch.from_numpy(one.copy()).double() for one in delta.vectors())
        S = torch.from_numpy(delta.S.float64())
        change = (U * (S * (z_of(kind, p, S) - 1))) @ Vt
        weight = model.get_submodule(path).weight
        weights[f"{path}.weight"] = weight.detach() + (change.T if family == "gpt2" else change)
    asked: list[Tensor] = []
    for prompt, answer in pairs:
        logits = functional_call(model, weights, (torch.tensor([[*prompt, *answer]]),)).logits[0]
        own = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        asked.append(own.gather(1, torch.tensor(answer)[:, None]).sum())
    wanted = torch.autograd.grad(torch.stack(asked).sum(), numbers)
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) < EXACT * float(other.abs().max())
        assert float(other.abs().max()) > 0


@pytest.mark.parametrize("method", ["sft", "reinforce"])
def test_the_model_is_as_it_was(method: str, model: Any) -> None:
    model.train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    _trained(method, model)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == [
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("kind", ["paper", "reference"])
def test_what_is_trained_is_what_is_attached(kind: Kind, model: Any, tmp_path: Path) -> None:
    data, held = examples(200, turned=True), examples(40, turned=True, seed=2)
    parts = decomposed(model)
    settings = TrainingSettings(steps=40, batch=32, every=10, kind=kind)
    found = sft(model, data, settings, validation=held, decomposition=parts, name="turned")
    assert found.score is not None
    assert found.started is not None
    assert found.score > found.started + 0.05
    file = save(found.adapter, parts, tmp_path / "turned.adaptrix.safetensors")
    plain = mean_loss(model, held)
    with adaptrix.attach(model, {"turned": file}) as session, session.use("turned"):
        assert -mean_loss(model, held) == pytest.approx(found.score, abs=1e-5)
    assert mean_loss(model, held) == plain
    if kind == "reference":
        for delta in found.adapter.deltas.values():
            S, z = delta.S.float64(), delta.z.float64()
            assert (S * z).sum() == pytest.approx(S.sum(), rel=1e-5)


def test_rewards_teach(model: Any) -> None:
    data, held = examples(200, turned=True), examples(40, turned=True, seed=2)
    found = reinforce(
        model, data, right, TrainingSettings(steps=30, batch=32, every=10), Policy(longest=4), validation=held
    )
    assert found.score is not None
    assert found.started is not None
    assert found.score >= found.started + 0.2
    told = {"steps": 10, "batch": 64, "every": 5, "rate": 1e-2}
    published = reinforce(
        model, data, right, TrainingSettings.published(**told), Policy.published(longest=4), validation=held
    )
    assert published.score is not None
    assert published.score > found.started


class StoppedError(Exception):
    """What an interruption raises."""


def _stopping(after: int) -> Callable[[str, int], Any]:
    """A display that interrupts when so many steps are done."""

    @contextmanager
    def display(what: str, _total: int) -> Iterator[Callable[[int], object]]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if what == "training" and done >= after:
                raise StoppedError

        yield advance

    return display


@pytest.mark.parametrize("method", ["sft", "reinforce"])
@pytest.mark.parametrize("after", [2, 5, 7])
def test_what_is_taken_up_again_is_the_same_to_the_bit(method: str, after: int, model: Any, tmp_path: Path) -> None:
    whole = _trained(method, model)
    state = tmp_path / "state"
    with pytest.raises(StoppedError) as stopped:
        _trained(method, model, state=state, display=_stopping(after))
    assert f"{after // 3 * 3} of 9 steps" in stopped.value.__notes__[0]
    assert state.exists() == (after >= 3)
    again = _trained(method, model, state=state)
    assert not state.exists()
    assert [dict(one) for one in again.history] == [dict(one) for one in whole.history]
    assert (again.score, again.started) == (whole.score, whole.started)
    for target, delta in whole.adapter.deltas.items():
        assert again.adapter.deltas[target].z.tobytes() == delta.z.tobytes()


def test_the_state_of_another_training_is_refused(model: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(StoppedError):
        _trained("sft", model, state=state, display=_stopping(5))
    for changed in ({"ends": ()}, {"validation": ()}):
        with pytest.raises(adaptrix.UsageError, match="another training"):
            _trained("sft", model, state=state, **changed)
    with pytest.raises(adaptrix.UsageError, match="another training"):
        _trained("reinforce", model, state=state)
    other = small().eval()
    with pytest.raises(adaptrix.UsageError, match="another training"):
        _trained("sft", other, state=state)


@pytest.mark.parametrize("numbers", ["", "[]", "{", '{"step": 3}'])
def test_a_damaged_state_is_refused(numbers: str, model: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(StoppedError):
        _trained("sft", model, state=state, display=_stopping(5))
    with safe_open(state, "pt") as file:
        told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, state, {**told, "state": numbers})
    with pytest.raises(adaptrix.UsageError, match="cannot be read"):
        _trained("sft", model, state=state)


def test_fewer_rows_at_once_give_the_same(model: Any) -> None:
    data = examples(20, turned=True)
    for rows in (3, 7):
        one = sft(model, data, TrainingSettings(steps=3, batch=8))
        other = sft(model, data, TrainingSettings(steps=3, batch=8, rows=rows))
        for figures, others in zip(one.history, other.history, strict=True):
            assert figures["loss"] == pytest.approx(others["loss"], rel=1e-5)
            assert figures["gradient"] == pytest.approx(others["gradient"], rel=1e-4)


def test_the_loss_is_that_of_the_answers_and_their_end(model: Any) -> None:
    data = [*examples(5, turned=True), Example((4, 5), (6,))]
    wanted = list[Tensor]()
    with torch.no_grad():
        for one in data:
            whole = torch.tensor([[*one.prompt, *one.response, END]])
            log_p = model(input_ids=whole).logits[0].log_softmax(-1)
            places = range(len(one.prompt) - 1, whole.shape[1] - 1)
            wanted += [-log_p[at, whole[0, at + 1]] for at in places]
    mean = float(torch.stack(wanted).mean())
    assert mean_loss(model, data) == pytest.approx(mean, rel=1e-5)
    found = sft(model, data, TrainingSettings(steps=1, batch=6, kind="paper"))  # which starts as the base
    assert found.history[0]["loss"] == pytest.approx(mean, rel=1e-5)
    without = mean_loss(model, data, ends=())
    assert without != pytest.approx(mean, rel=1e-3)


def test_a_step_on_rewards_is_the_formula(model: Any) -> None:
    """One step from p = 1 with a KL penalty, whose gradient is zero there: −Σ A·Σ log π over the answers drawn."""
    data, seen = examples(6, turned=True), list[tuple[Example, tuple[int, ...]]]()

    def reward(example: Example, answer: tuple[int, ...]) -> float:
        seen.append((example, answer))
        return float(sum(answer)) + 0.25 * len(seen)

    settings = TrainingSettings(steps=1, batch=6, kind="paper", clip=1e9)
    found = reinforce(model, data, reward, settings, Policy(samples=2, longest=3, kl=0.5), ends=())
    worth = [float(sum(answer)) + 0.25 * (at + 1) for at, (_, answer) in enumerate(seen)]
    parts = decomposed(model)
    with trainable_on(model, parts, "paper", 0) as trainable:
        with trainable.acting():
            log_p, told, mask = log_probabilities(model, [(one.prompt, answer) for one, answer in seen])
        gain = (chosen(log_p, told) * mask).sum(1)
        pairs = list(zip(gain, [worth[at] - worth[at ^ 1] for at in range(12)], strict=True))
        loss = -sum(one * other for one, other in pairs) / 12
        assert isinstance(loss, Tensor)
        loss.backward()
        trainable.pull()
        norm = float(torch.stack([leaf.grad.norm() for leaf in trainable.leaves if leaf.grad is not None]).norm())
    assert found.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert found.history[0]["gradient"] == pytest.approx(norm, rel=1e-4)
    assert found.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert norm > 0


def test_kl_is_that_of_the_base_from_the_expert(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = examples(6, turned=True), list[tuple[tuple[int, ...], tuple[int, ...]]]()

    def reward(example: Example, answer: tuple[int, ...]) -> float:
        seen.append((example.prompt, answer))
        return float(len(seen))

    def far(_: str, size: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.randn(size, generator=generator)

    monkeypatch.setattr("adaptrix_transformer2.train.trainable.start", far)  # where the two directions differ
    settings = TrainingSettings(steps=1, batch=6)
    found = reinforce(model, data, reward, settings, Policy(samples=2, longest=3, kl=0.1), ends=())
    with trainable_on(model, decomposed(model), settings.kind, settings.seed) as trainable, torch.no_grad():
        base_p, _, mask = log_probabilities(model, seen)
        with trainable.acting():
            own_p = log_probabilities(model, seen)[0]
    kl = float(((base_p.exp() * (base_p - own_p)).sum(-1) * mask).sum() / 12)
    assert kl > 0.1
    assert found.history[0]["kl"] == pytest.approx(kl, rel=1e-4)


def test_every_step_draws_anew(model: Any) -> None:
    seen = list[tuple[int, ...]]()

    def reward(_: Example, answer: tuple[int, ...]) -> float:
        seen.append(answer)
        return float(len(seen))

    settings = TrainingSettings(steps=2, batch=6, rate=1e-12)
    reinforce(model, examples(1, turned=True) * 6, reward, settings, Policy(longest=3, temperature=3.0), ends=())
    assert seen[:24] != seen[24:]
    assert len(set(seen[:24])) > 1


def test_kl_holds_an_expert_to_its_base(model: Any) -> None:
    data = examples(20, turned=True)
    strict = TrainingSettings(steps=25, batch=16)
    free = reinforce(model, data, right, strict, Policy(longest=3, kl=0.0))
    bound = reinforce(model, data, right, strict, Policy(longest=3, kl=100.0))
    assert _size(bound) < 0.5 * _size(free)


def _size(trained: Trained) -> float:
    return sum(delta.energy() for delta in trained.adapter.deltas.values()) ** 0.5


def test_rewards_that_are_all_equal_are_told_and_refused(model: Any) -> None:
    data = examples(20, turned=True)
    policy = Policy(longest=4, patience=3)
    with pytest.raises(
        adaptrix.RefusedError, match="every answer of 3 steps was worth 0; expected rewards that differ"
    ):
        reinforce(model, data, lambda *_: 0.0, RL, policy)
    with pytest.raises(adaptrix.RefusedError, match="worth 1"):
        reinforce(model, data, lambda *_: 5.0, RL, Policy.published(longest=4, patience=3))
    calls = []

    def once(*_: object) -> float:
        calls.append(1)
        return 0.1 + float(len(calls) == 1)  # three times 0.1 and the mean of two are not the same in floats

    found = reinforce(model, data, once, RL, policy)
    assert [figures.get("skipped") for figures in found.history] == [None, 1, 1, 1], "it ends when nothing is learnt"
    assert [figures.get("equal") for figures in found.history] == [None, 1, 1, 1]
    assert "gradient" not in found.history[1]


def test_numbers_that_are_none_end_a_training(model: Any) -> None:
    data, before = examples(20, turned=True), copy.deepcopy(model.state_dict())
    with pytest.raises(adaptrix.RefusedError, match="expected a finite number"):
        reinforce(model, data, lambda *_: float("nan"), RL, POLICY)
    with pytest.raises(adaptrix.RefusedError, match="the loss of step 2"):
        sft(model, data, TrainingSettings(steps=3, kind="paper", rate=1e30))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there are none"),
        ([Example((), (2,))], "its prompt has no tokens"),
        ([Example((2,), ())], "its response has no tokens"),
        ([Example((2,) * 12, (3,) * 4)], "it may take 17 tokens; expected at most 16"),
        ([Example((2,), (10,))], "the model knows 10"),
    ],
)
def test_examples_that_cannot_be_read_are_refused(given: list[Example], said: str, model: Any) -> None:
    with pytest.raises(adaptrix.RefusedError, match=said):
        sft(model, given)


def test_what_is_no_causal_model_is_refused() -> None:
    for model in (tiny_model("bert"), tiny_model("bert").bfloat16(), tiny_model("t5")):
        with pytest.raises(adaptrix.RefusedError) as error:
            sft(model, [Example((3, 4, 5), (6, 7))])
        assert error.value.problems[0].code == "model-unsupported"


@pytest.mark.parametrize("rate", [1e38, float("inf"), float("nan"), 0, True])
def test_a_rate_that_no_optimiser_can_take_is_refused(rate: float, model: Any) -> None:
    with pytest.raises(adaptrix.UsageError, match=r"rate: .*; expected a number above 0 and at most 1e\+30"):
        sft(model, examples(3, turned=True), TrainingSettings(rate=rate))


def test_every_number_that_makes_no_sense_is_told(model: Any) -> None:
    settings = TrainingSettings(steps=0, batch=-1, rate=float("inf"), clip=0, every=True, kind="free")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(adaptrix.UsageError) as error:
        reinforce(model, examples(3, turned=True), right, settings, Policy(samples=1, temperature=0.0, kl=-1.0))
    found = {problem.where for problem in error.value.problems}
    assert found == {"steps", "batch", "rate", "clip", "every", "kind", "baseline", "kl"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt", "gemma2"])
def test_answers_are_those_of_generate(family: str) -> None:
    model = tiny_model(family)
    prompts = [(3, 4, 5, 6), (7,), (8, 9)]
    found = answers(model, prompts, 5, ())
    for prompt, answer in zip(prompts, found, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
        )
        told = {int(token) for token in wanted[0, len(prompt) :]}
        if model.generation_config.eos_token_id not in answer:  # generate keeps from it, and goes another way
            assert answer == tuple(wanted[0, len(prompt) :].tolist()), told


def test_answers_end_where_they_end(model: Any) -> None:
    (answer,) = answers(model, [(2, 3, 4, 1)], 8, (0,))
    assert answer[-1] == 0
    assert answer.count(0) == 1
    assert len(answer) == 4
    drawn = [answers(model, [(2, 3, 4, 1)] * 4, 8, (0,), 1.0, torch.Generator().manual_seed(at)) for at in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_probabilities_do_not_depend_on_their_neighbours(model: Any) -> None:
    pairs = [((2, 3, 4, 1), (4, 3, 2, 0)), ((5,), (6,)), ((7, 8), (9, 9, 9))]
    log_p, told, mask = log_probabilities(model, pairs)
    assert mask.sum(1).tolist() == [4, 1, 3]
    for row, pair in enumerate(pairs):
        alone = log_probabilities(model, [pair])
        count = len(pair[1])
        assert torch.allclose(chosen(log_p, told)[row, :count], chosen(*alone[:2])[0], atol=1e-5)


def test_the_mean_reward_is_of_the_likeliest_answers(model: Any) -> None:
    held = examples(30, turned=True)
    found = answers(model, [one.prompt for one in held], 4, (0,))
    wanted = sum(answer == (*one.response, 0) for one, answer in zip(held, found, strict=True)) / 30
    assert mean_reward(model, held, right, 4) == pytest.approx(wanted)
    assert 0 < wanted < 1
