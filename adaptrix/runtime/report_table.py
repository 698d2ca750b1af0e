"""The injections of a session as a table: a row a role, as :func:`print` shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from adaptrix.binding.stacks import ranges
from adaptrix.wording import shown

_HEAD = ("role", "layers", "modules", "injections", "a module", "never in layers")
#: the number of a layer, in the name of a site or in the path of a module
_LAYER = re.compile(r"\.(\d+)(?=\.)")
#: the most roles that are shown
_MOST = 60


def table(injections: Mapping[str, int]) -> list[str]:
    """The lines of the table; of more than 60 roles a last one counts the rest."""
    roles: dict[str, list[tuple[int | None, int]]] = {}
    for site, count in injections.items():
        role, layer = _split(site)
        roles.setdefault(role, []).append((layer, count))
    rows = [_row(role, roles[role]) for role in sorted(roles)]
    more = [f"and {len(rows) - _MOST} more roles"] if len(rows) > _MOST else []
    return [*_aligned([_HEAD, *rows[:_MOST]]), *more] if rows else ["no modules are hooked"]


def _split(site: str) -> tuple[str, int | None]:
    """The role of a site, all experts of a layer together, and its layer."""
    found = _LAYER.search(f".{site}.")
    name = re.sub(r"\.e\d+$", "", site)
    if found is None:
        return name, None
    return name.removeprefix(f"layers.{found[1]}.").replace(f".{found[1]}.", ".{layer}."), int(found[1])


def _row(role: str, modules: Sequence[tuple[int | None, int]]) -> tuple[str, ...]:
    counts = [count for _, count in modules]
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
    never = [layer for layer, count in modules if not count]
    return (
        shown(role),
        _layers(layer for layer, _ in modules),
        str(len(modules)),
        str(sum(counts)),
        span,
        _layers(never),
    )


def _layers(layers: Iterable[int | None]) -> str:
    """``0-5,7``; a dash for what is outside the layers, nothing for none."""
    found = list(layers)
    inside = sorted({layer for layer in found if layer is not None})
    return ranges(inside) if inside else "-" * bool(found)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for role, layers, *numbers, never in rows:
        cells = [role.ljust(widths[0]), layers.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=False)]
        yield "  ".join([*cells, never]).rstrip()
