"""Sizes of layers that a delta's formula needs and its tensors do not say: those of the site that it is at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from adaptrix.architecture import Site
from adaptrix.delta import Delta, Parametrised, of_class, part_problems
from adaptrix.errors import Problem

Shape = tuple[int | None, int | None]


def with_sizes(deltas: dict[Site, Delta], shapes: Mapping[Site, Shape], where: Mapping[Site, object]) -> list[Problem]:
    """Puts deltas with their sizes in place of those without; the problems of sizes that are not known, or do not fit.

    ``shapes``: (out, in) of each site, as far as it is known; ``where``: the module of each, for messages.
    """
    lacking = {site: delta for site, delta in of_class(deltas, Parametrised).items() if delta.unsized}
    sized = {site: _sized(delta, shapes[site]) for site, delta in lacking.items()}
    if all(0 not in delta.shape for delta in sized.values()):
        everything = [delta.shape for delta in {**deltas, **sized}.values()]
        tallest, widest = (max((shape[axis] for shape in everything), default=0) for axis in (0, 1))
        sized = {site: delta.sized(tallest=tallest, widest=widest) for site, delta in sized.items()}
    deltas.update(sized)
    found = {site: list(_problems(delta, f"{site} ({where[site]})")) for site, delta in sized.items()}
    sound = {site: delta for site, delta in of_class(deltas, Parametrised).items() if not found.get(site)}
    strange = (_strange(delta, f"{site} ({where[site]})") for site, delta in sound.items())
    return [*chain.from_iterable(found.values()), *chain.from_iterable(strange)]


def _sized(delta: Parametrised, shape: Shape) -> Parametrised:
    known = {name: size for name, size in zip(("out", "in"), shape, strict=True) if size is not None}
    return delta.sized(**known)


def _problems(delta: Parametrised, where: str) -> Iterator[Problem]:
    if 0 in delta.shape:
        found = f"the tensors of {delta.kind} do not say how many {'columns' if delta.shape[0] else 'rows'} ΔW has"
        yield Problem("base-needed", where, found, "the sizes of its base", "Name the base with --base MODEL.")
        return
    yield from part_problems(delta.kind, {**delta.parts, **delta.shared}, delta.settings, where)


def _strange(delta: Parametrised, where: str) -> Iterator[Problem]:
    """A problem where it lacks what the deltas of its adapter share, or names places that are not there."""
    if delta.unshared:
        remedy = "The checkpoint is incomplete: fetch it again."
        yield Problem("adapter-incomplete", where, f"{', '.join(delta.unshared)} is missing", "it beside them", remedy)
    elif delta.misplaced:
        found = f"the indices of {delta.kind} name places that are not there; ΔW is {list(delta.shape)}"
        yield Problem("shape", where, found, "places in it", "The adapter belongs to a model of another size.")
