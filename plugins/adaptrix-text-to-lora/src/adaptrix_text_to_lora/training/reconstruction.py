"""Training a hypernetwork to give back a library of LoRAs (arXiv 2506.06105, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from adaptrix.extend import refuse
from adaptrix_text_to_lora.hypernetwork import Factors, Hypernetwork
from adaptrix_text_to_lora.training.library import Library
from adaptrix_text_to_lora.training.loop import QUIET, Recipe, State, Watch, run
from adaptrix_text_to_lora.training.tasks import Described

#: the published rate
RECONSTRUCTION = Recipe(steps=10_000, rate=1e-3)
#: what is compared: canonical factors on a common footing, or the ΔW that they make
Kind = Literal["factors", "delta"]

#: from what the hypernetwork gives for some LoRAs of the library, by their numbers, to a loss
Compare = Callable[[Factors, Tensor], Tensor]

_TINY = 1e-12  # a mean |ΔW| that nothing is divided by
_FLOOR = 1e-3  # of the mean deviation of a factor's numbers: what hardly varies is not to weigh a thousand times more


def reconstruct(
    hypernetwork: Hypernetwork,
    library: Library,
    recipe: Recipe = RECONSTRUCTION,
    *,
    loss: Kind = "factors",
    state: State | None = None,
    watch: Watch = QUIET,
) -> Tensor:
    """Trains the hypernetwork in place; returns the curve ``[steps, 3]``: loss, rate, norm of the gradient.

    ``factors``: ½L1(A) + ½L1(B), each number in standard deviations over the library. ``delta``: L1 of ΔW, as a share
    of the library's mean |ΔW|. A hypernetwork whose output is z-scores keeps the library's statistics.
    Raises :class:`RefusedError` for a library of other sizes, and where it diverges.
    """
    _require_fit(hypernetwork, library)
    device = next(hypernetwork.parameters()).device
    targets = {name: (A.to(device), B.to(device)) for name, (A, B) in library.targets.items()}
    if hypernetwork.shape.output == "z-score":
        _standardise(hypernetwork, targets)
    compare = _of_factors(targets) if loss == "factors" else _of_deltas(targets)
    texts = Described(library.embeddings, device)

    def drawn() -> Tensor:
        chosen = texts.choose(recipe.tasks)
        return compare(hypernetwork(texts.draw(chosen)), chosen)

    return run(hypernetwork, drawn, recipe, state, watch)


def _require_fit(hypernetwork: Hypernetwork, library: Library) -> None:
    shape = hypernetwork.shape
    for module in shape.modules:
        pair = library.targets.get(module.name)
        found = None if pair is None else tuple(tuple(factor.shape[1:]) for factor in pair)
        wanted = (shape.layers, shape.rank, module.inp), (shape.layers, module.out, shape.rank)
        if found != wanted:
            raise refuse("training-data", module.name, f"factors of {found}", f"A {wanted[0]} and B {wanted[1]} a LoRA")
    if strange := library.targets.keys() - {module.name for module in shape.modules}:
        raise refuse("training-data", sorted(strange)[0], "the hypernetwork makes no delta there")


@torch.no_grad()
def _standardise(hypernetwork: Hypernetwork, targets: Factors) -> None:
    """Gives the hypernetwork the library's mean and deviation of every number."""
    mean, std = hypernetwork.mean_recon_target, hypernetwork.std_recon_target
    for name, (A, B) in targets.items():
        for factor, means, stds in ((A, mean.A, std.A), (B, mean.B, std.B)):
            means.get_buffer(name).copy_(factor.mean(0))
            stds.get_buffer(name).copy_(factor.std(0, correction=0))


def _of_factors(targets: Factors) -> Compare:
    """½L1(A) + ½L1(B) in deviations, the mean of all modules."""
    units = {name: (_unit(A), _unit(B)) for name, (A, B) in targets.items()}

    def compare(found: Factors, chosen: Tensor) -> Tensor:
        terms = [
            ((ours - wanted[chosen]) / unit).abs().mean()
            for name, pair in targets.items()
            for ours, wanted, unit in zip(found[name], pair, units[name], strict=True)
        ]
        return torch.stack(terms).mean()

    return compare


def _of_deltas(targets: Factors) -> Compare:
    """L1 of ΔW over the mean |ΔW| of the library, the mean of all modules."""
    wanted = {name: B @ A for name, (A, B) in targets.items()}
    sizes = {name: max(float(delta.abs().mean()), _TINY) for name, delta in wanted.items()}

    def compare(found: Factors, chosen: Tensor) -> Tensor:
        apart = {name: B @ A - wanted[name][chosen] for name, (A, B) in found.items()}
        return torch.stack([delta.abs().mean() / sizes[name] for name, delta in apart.items()]).mean()

    return compare


def _unit(factor: Tensor) -> Tensor:
    """The unit of differences: the standard deviation of each number; 1 where nothing varies at all."""
    std = factor.std(0, correction=0)
    floor = float(std.mean()) * _FLOOR
    return std.clamp_min(floor) if floor else torch.ones_like(std)
