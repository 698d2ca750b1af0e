"""Training in memory: gradients held to dense weights and autograd, runs taken up to the bit, libraries given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptrix_text_to_lora import Hypernetwork
from adaptrix_text_to_lora.adapters import Origin
from adaptrix_text_to_lora.shape import Output, Shape, Variant
from adaptrix_text_to_lora.targets import Base
from adaptrix_text_to_lora.training import (
    Library,
    Objective,
    Recipe,
    State,
    Task,
    canonical,
    evaluate,
    fine_tune,
    reconstruct,
)
from adaptrix_text_to_lora.training.loop import Watch
from adaptrix_text_to_lora.training.module_factors import by_path
from adaptrix_text_to_lora.training.reconstruction import Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

import adaptrix
from tests.helpers.double import EXACT, double
from tests.helpers.families import FAMILIES, tiny_model

EMBEDDING, SCALE, SEED = 6, 1.7, 5
SMALL = {"rank": 3, "embedding": EMBEDDING, "latent": 8, "head_in": 10}


def _shape(model: Any, variant: Variant = "L", roles: tuple[str, ...] = ("q", "v"), **sizes: Any) -> Shape:
    base = Base.of_model(model)
    target_modules = base.find_modules(roles)
    return Shape(variant, base.modules(target_modules), base.layers(target_modules), **{**SMALL, **sizes})


def _network(shape: Shape, seed: int = SEED) -> Hypernetwork:
    """One whose heads are not at zero, so that every part of it has a gradient."""
    torch.manual_seed(seed)
    network = Hypernetwork(shape)
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.1)
        torch.nn.init.normal_(head.bias, std=0.1)
    return network


def _task(seed: int, *, examples: int = 1, descriptions: int = 1, length: int = 7, answer: int = 3) -> Task:
    torch.manual_seed(seed)
    ids = torch.randint(3, 40, (examples, length))
    labels = ids.clone()
    labels[:, :-answer] = -100
    return Task(torch.randn(descriptions, EMBEDDING), ids, labels)


def _dense(model: Any, network: Hypernetwork, task: Task) -> dict[str, torch.Tensor]:
    """The base's weights with a task's ΔW added, in their own layout, differentiable in the hypernetwork."""
    weights = dict(model.named_parameters())
    base = Base.of_model(model)
    factors = network(task.embeddings)
    for target in base.find_modules(factors):
        A, B = factors[target.name]
        for layer in range(network.shape.layers):
            name = f"{target.path(layer)}.weight"
            delta = SCALE * B[0, layer] @ A[0, layer]
            if target.part is not None:
                rows = torch.from_numpy(target.rows[target.part])
                height = sum(map(len, target.rows.values()))
                delta = delta.new_zeros(height, delta.shape[1]).index_copy(0, rows, delta)
            turned = type(model.get_submodule(target.path(layer))).__name__ == "Conv1D"
            weights[name] = weights[name] + (delta.T if turned else delta)
    return weights


def _wanted_gradients(
    model: Any, network: Hypernetwork, tasks: list[Task], objective: Objective
) -> tuple[float, Mapping[str, torch.Tensor]]:
    """The loss by its formula, one task after another, and autograd's gradients."""
    surprises, sizes = [], []
    for task in tasks:
        given_ = {"input_ids": task.ids, "use_cache": False}
        logits = functional_call(model, _dense(model, network, task), kwargs=given_).logits[0]
        for position in range(1, task.ids.shape[1]):
            if task.labels[0, position] != -100:
                logs = logits[position - 1].log_softmax(-1)
                sure, even = -logs[task.labels[0, position]], -logs.mean()
                surprises.append((1 - objective.smoothing) * sure + objective.smoothing * even)
        pairs = network(task.embeddings).values()
        sizes.append(torch.stack([A.square().mean() + B.square().mean() for A, B in pairs]).sum())
    loss = torch.stack(surprises).mean() + objective.penalty * torch.stack(sizes).mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("family", "variant", "roles"),
    [
        ("llama", "L", ("q", "v", "down")),
        ("llama", "S", ("v", "q")),
        ("gpt2", "M", ("q", "v", "up")),
        ("bloom", "L", ("q", "v")),
    ],
)
def test_gradients_are_those_of_dense_weights(family: str, variant: Variant, roles: tuple[str, ...]) -> None:
    model = tiny_model(family, 0).double()
    network = _network(_shape(model, variant, roles)).double().eval()
    tasks = [_task(seed, length=length) for seed, length in ((1, 7), (2, 5), (3, 9))]
    tasks = [replace(task, embeddings=task.embeddings.double()) for task in tasks]
    objective = Objective(SCALE, smoothing=0.2, penalty=0.3)
    states = list[State]()
    recipe = Recipe(steps=1, rate=1e-9, tasks=3, clip=1e9, dropout=False, seed=SEED)
    with double():
        loss, wanted = _wanted_gradients(model, network, tasks, objective)
        curve = fine_tune(network, model, tasks, objective, recipe, watch=Watch(on_state=states.append))
    assert curve[0, 0].item() == pytest.approx(loss, rel=EXACT)
    for name, gradient in wanted.items():
        found = states[0].first[name] / 0.1  # AdamW's first moment after one step is (1 − β₁) of the gradient
        assert (found - gradient).abs().max() <= EXACT * gradient.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_act_in_every_family_as_the_adapters_made_of_them(family: str) -> None:
    """Each row of a batch is what the session gives under the adapter that is written for that row's text."""
    model = tiny_model(family, 0)
    base = Base.of_model(model)
    target_modules = base.find_modules(("q", "v"))
    with torch.no_grad():
        factors = _network(_shape(model)).eval()(torch.randn(2, EMBEDDING))
        origin = Origin("memory", {}, None, alpha=SCALE * 3, rslora=False, encoder="none")
        rows = [{name: (A[row], B[row]) for name, (A, B) in factors.items()} for row in range(2)]
        adapters = {str(row): origin.adapter("text", pairs, target_modules) for row, pairs in enumerate(rows)}
        inputs = {"input_ids": torch.tensor([[3, 5, 7, 9, 11], [4, 8, 2, 6, 1]])}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[3, 5, 7]] * 2)
        with adaptrix.attach(model, adapters) as session:
            plain = model(**inputs)[0]
            with session.route(["0", "1"]):
                wanted = model(**inputs)[0]
            with session.given(by_path(factors, target_modules), SCALE):
                found = model(**inputs)[0]
    assert (wanted - plain).abs().max() > 1e-3
    assert (found - wanted).abs().max() < 1e-5


def test_the_model_is_as_it_was() -> None:
    model = tiny_model("llama", 0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fine_tune(_network(_shape(model)), model, [_task(1)], Objective(SCALE), Recipe(steps=2, rate=1e-3))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rows_of_a_task_share_its_description_and_prompts_are_not_learned() -> None:
    """With one example over and over, more rows change nothing; neither do tokens whose labels are ignored."""
    model = tiny_model("llama", 0)
    task = _task(1)
    losses = []
    padded = replace(task, ids=task.ids.repeat(1, 2), labels=torch.cat([task.labels, task.labels * 0 - 100], 1))
    for rows, given_ in ((1, task), (4, task), (1, padded)):
        recipe = Recipe(steps=1, rate=1e-3, rows=rows, dropout=False)
        curve = fine_tune(_network(_shape(model)), model, [given_], Objective(SCALE), recipe)
        losses.append(curve[0, 0].item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


class _StopError(Exception):
    """An interruption."""


@pytest.mark.parametrize("kind", ["fine-tuning", "reconstruction"])
def test_a_run_that_was_stopped_comes_to_the_same_bits(kind: str) -> None:
    model = tiny_model("llama", 0)
    shape = _shape(model, output="added" if kind == "fine-tuning" else "z-score")
    tasks = [_task(seed, examples=4, descriptions=3) for seed in range(6)]
    library = _library(shape)
    recipe = Recipe(steps=20, rate=1e-2, tasks=3, rows=2, seed=11)

    def run(network: Hypernetwork, state: State | None = None, watch: Watch | None = None) -> torch.Tensor:
        torch.rand(7)  # whatever else draws numbers
        rest = {"state": state, "watch": watch or Watch()}
        if kind == "fine-tuning":
            return fine_tune(network, model, tasks, Objective(SCALE), recipe, **rest)
        return reconstruct(network, library, recipe, **rest)

    whole = _network(shape)
    curve = run(whole)
    states, steps = list[State](), list[int]()

    def stop(count: int) -> None:
        steps.append(count)
        if len(steps) == 14:
            raise _StopError

    torn = _network(shape)
    with pytest.raises(_StopError):
        run(torn, watch=Watch(every=6, on_state=states.append, advance=stop))
    assert [state.step for state in states] == [6, 12]
    again = _network(shape, seed=99)
    assert torch.equal(run(again, states[-1]), curve)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert len(set(curve[:, 0].tolist())) == 20


def test_what_diverges_stops_and_says_where() -> None:
    model = tiny_model("llama", 0)
    network, states = _network(_shape(model)), list[State]()
    recipe, watch = Recipe(steps=40, rate=1e30, warmup=0.5), Watch(every=1, on_state=states.append)
    with pytest.raises(adaptrix.RefusedError) as error:
        fine_tune(network, model, [_task(1)], Objective(SCALE), recipe, watch=watch)
    assert [problem.code for problem in error.value.problems] == ["diverged"]
    assert all(tensor.isfinite().all() for state in states for tensor in state.network.values())
    assert not any(parameter.grad is not None for parameter in network.parameters())


def _library(shape: Shape, count: int = 4) -> Library:
    rng = torch.Generator().manual_seed(3)
    factors = {
        module.name: (
            torch.randn(count, shape.layers, shape.rank, module.inp, generator=rng),
            torch.randn(count, shape.layers, module.out, shape.rank, generator=rng),
        )
        for module in shape.modules
    }
    return Library.of_factors([torch.randn(2, EMBEDDING, generator=rng) for _ in range(count)], factors)


@pytest.mark.parametrize(
    ("variant", "output", "loss", "most"),
    [
        ("L", "z-score", "factors", 0.02),
        pytest.param("L", "added", "delta", 0.1, marks=pytest.mark.slow),
        pytest.param("M", "z-score", "factors", 0.2, marks=pytest.mark.slow),
    ],
)
def test_four_loras_are_given_back(variant: Variant, output: Output, loss: Kind, most: float) -> None:
    """Under every one of their descriptions, the ΔW of each within a small error."""
    shape = _shape(tiny_model("llama", 0), variant, output=output, latent=32, head_in=64)
    library = _library(shape)
    network = Hypernetwork(shape)
    reconstruct(network, library, Recipe(steps=500, rate=3e-3, dropout=False), loss=loss)
    with torch.no_grad():
        for index, texts in enumerate(library.embeddings):
            found = network.eval()(texts)
            for name, (A, B) in library.targets.items():
                wanted = B[index] @ A[index]
                apart = (found[name][1] @ found[name][0] - wanted).flatten(1).norm(dim=1) / wanted.norm()
                assert apart.max() < most, name


def test_a_library_of_other_sizes_is_refused() -> None:
    shape = _shape(tiny_model("llama", 0))
    other = replace(shape, layers=shape.layers + 1)
    with pytest.raises(adaptrix.RefusedError, match="factors of"):
        reconstruct(Hypernetwork(shape), _library(other), Recipe(steps=1, rate=1e-3))


@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 5), inp=st.integers(1, 9), out=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_whatever_the_factors_the_target_is_the_same(seed: int, rank: int, inp: int, out: int) -> None:
    """Any invertible G between B and A gives one target, as long as no two singular values are all but equal."""
    rng = np.random.default_rng(seed)
    held = min(rank, inp, out)
    U, V = (np.linalg.qr(rng.standard_normal((size, held)))[0] for size in (out, inp))
    S = 2.0 ** -np.arange(held) * rng.uniform(0.8, 1.2)
    A, B = rng.standard_normal((rank, inp)), rng.standard_normal((out, rank))
    A[:held], B[:, :held] = V.T, U * S
    A[held:], B[:, held:] = 0, 0
    G = np.linalg.qr(rng.standard_normal((rank, rank)))[0] @ np.diag(rng.uniform(0.3, 3, rank))
    pairs = [canonical(*map(torch.from_numpy, pair)) for pair in ((A, B), (np.linalg.inv(G) @ A, B @ G), (-A, -B))]
    for found in pairs:
        torch.testing.assert_close(found[1] @ found[0], torch.from_numpy(B @ A), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found, pairs[0], rtol=1e-5, atol=1e-6)
    found_A, found_B = pairs[0]
    torch.testing.assert_close(found_A.norm(dim=1), found_B.norm(dim=0), rtol=1e-6, atol=1e-7)


def test_a_rank_that_is_too_small_is_refused_and_one_too_large_filled() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(2, 3, 7), torch.randn(2, 5, 3)
    wider = canonical(A, B, 4)
    assert wider[0].shape == (2, 4, 7)
    torch.testing.assert_close(wider[1] @ wider[0], B @ A, rtol=1e-5, atol=1e-5)
    with pytest.raises(adaptrix.RefusedError, match="beyond rank 2"):
        canonical(A, B, 2)


def test_scores_are_those_of_the_dense_model_and_of_greedy_decoding() -> None:
    model = tiny_model("llama", 0)
    network = _network(_shape(model)).eval()
    torch.nn.init.normal_(network.heads["q"].bias, std=0.5)
    tasks = [_task(1), _task(2)]
    for task in tasks[:1]:  # one that the model would answer so
        for position in range(4, 7):
            weights = _dense(model, network, task)
            logits = functional_call(model, weights, kwargs={"input_ids": task.ids}).logits
            task.ids[0, position] = task.labels[0, position] = logits[0, position - 1].argmax()
    found = evaluate(network, model, tasks, SCALE)
    assert (found.by_task[0].exact, found.by_task[0].accuracy) == (1.0, 1.0)
    assert found.generated.examples == found.base.examples == 2
    losses = []
    for described in (tasks, tasks[::-1], None):
        total = 0.0
        for index, task in enumerate(tasks):
            weights = _dense(model, network, described[index]) if described else dict(model.named_parameters())
            logits = functional_call(model, weights, kwargs={"input_ids": task.ids}).logits[0]
            logs = logits[3:6].log_softmax(-1)
            total -= logs.gather(1, task.ids[0, 4:, None]).sum().item()
        losses.append(total / 6)
    assert found.shuffled is not None
    assert [found.generated.loss, found.shuffled.loss, found.base.loss] == pytest.approx(losses, rel=1e-4)
