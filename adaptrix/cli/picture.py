"""An inspection in the terminal: a card, a table of roles, and ‖ΔW‖ by layer and role."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from adaptrix.cli.common import clean
from adaptrix.inspection import Inspection, Picture, RoleSummary
from adaptrix.wording import amount, some

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN = "123456789"
_ROWS = 60  # of a table; --json has them all
_LONGEST = 60  # characters of a cell
_LEAST = 20  # columns for a value beside its name, however narrow the terminal
_WIDEST = 10_000
_JOINT = "\ue000"  # stands for a space where no line is broken; for private use, so that no text has it
_HEAT = ("blue", "cyan", "green", "yellow", "red")


def show(inspection: Inspection) -> None:
    """Prints an inspection; plain text where the output is no terminal."""
    console = Console(highlight=False)
    for line in _card(inspection, console.width):
        console.print(line, soft_wrap=True)
    console.print()
    _print_whole(_roles(inspection.roles))
    if inspection.picture:
        console.print(Text("\n‖ΔW‖ by layer and role", style="bold"))
        console.print(_heat(inspection, console))
    if inspection.bound.adapter.extras:
        console.print(Text("\nNot a delta", style="bold"))
        _print_whole(_extras(inspection))


def _print_whole(table: RenderableType) -> None:
    """Prints a table as wide as its cells are: a path that is cut in two cannot be copied."""
    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)


def _card(inspection: Inspection, width: int) -> Iterator[Text]:
    """Lines of a name and a value, broken between words alone: hashes, paths and addresses stay whole."""
    adapter, bound = inspection.bound.adapter, inspection.bound
    tensors = [tensor for _, tensor in adapter.tensors()]
    dims = [f"{name} {value}" for name, value in {**bound.depths, **bound.dims.values}.items()]
    origin = "config" if "config" in bound.dims.origins.values() else "tensors"
    source = adapter.provenance
    rows = {
        "name": adapter.name,
        "base": _whole(adapter.base or "not recorded"),
        "architecture": f"{bound.architecture.family} (dims from {origin})",
        "dims": some(dims, 20),
        "tensors": f"{len(tensors)}, {amount(sum(tensor.nbytes for tensor in tensors))}",
        "source": f"{_whole(source.uri)} ({source.format})" + (f" at {source.commit}" if source.commit else ""),
        "config": _config(source.config),
    }
    if adapter.recorded is not None:
        rows["plan"] = adapter.recorded.policy
    if inspection.spectral:
        rows["spectral"] = inspection.spectral
    listed = [*rows.items(), *(("sha256", f"{digest} {_whole(name)}") for name, digest in source.files.items())]
    margin = max(len(name) for name, _ in listed) + 2
    for name, value in listed:
        yield from _lines(name, value, margin, width)


def _whole(text: str) -> str:
    """A text whose spaces are no places to break a line at, until :func:`_lines` has broken it."""
    return text.replace(" ", _JOINT)


def _lines(name: str, value: str, margin: int, width: int) -> Iterator[Text]:
    room = max(width - margin, _LEAST)
    lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
    for i, line in enumerate(lines):
        label = Text("" if i else name, style="dim")
        label.pad_right(margin - len(label))
        yield label.append(Text(clean(line.replace(_JOINT, " ")), style="not dim"))


def _config(config: Mapping[str, object]) -> str:
    """The settings of the training that the config states, on one line."""
    keys = (
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "lora_dropout",
        "bias",
        "task_type",
        "peft_version",
    )
    return ", ".join(f"{key} {config[key]}" for key in keys if config.get(key) not in (None, False, 0.0, "none"))


def _roles(roles: tuple[RoleSummary, ...]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("role", "deltas", "layers", "out × in", "rank", "scale", "dtype", "‖ΔW‖"):
        justify: JustifyMethod = "right" if column in ("deltas", "‖ΔW‖") else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    for role in roles[:_ROWS]:
        table.add_row(
            clean(role.role),
            str(role.count),
            _short(role.layers) or "–",
            _join(f"{out or '?'} × {inp or '?'}" for out, inp in role.shapes),
            _join(map(str, role.ranks)),
            _join(f"{scale:.4g}" for scale in role.scales),
            _join(role.dtypes),
            f"{role.energy**0.5:.4g}",
        )
    return _cut(table, len(roles))


def _cut(table: Table, count: int) -> RenderableType:
    """A table, and a word under it where there is more than it has room for."""
    more = Text(f"… and {count - _ROWS} more: --json has them all", style="dim")
    return Group(table, more) if count > _ROWS else table


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rpartition(",")[0] + ",…"


def _join(values: Iterable[str]) -> str:
    """The first three of some values."""
    listed = list(values)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")


def _heat(inspection: Inspection, console: Console) -> RenderableType:
    """One row a role, one cell a layer, every cell as high as its share of the largest."""
    picture, layers, left_out = inspection.drawn(_ROWS)
    largest = max((norm for row in picture.values() for norm in row.values()), default=0.0)
    table = Table.grid(padding=(0, 2, 0, 0))
    width = max(console.width - max(map(len, picture)) - 12, 16)
    for start in range(0, len(layers), width):
        _strip(table, picture, layers[start : start + width], largest, console)
    table.add_row(Text(""), Text(f"full bar = {largest:.4g}, · = no delta", style="dim"))
    return Group(table, Text(f"not drawn: {left_out}; --json has all", style="dim")) if left_out else table


def _strip(table: Table, picture: Picture, layers: Sequence[int], largest: float, console: Console) -> None:
    """As many layers as a line has room for, under their numbers."""
    bars = _BARS if (console.encoding or "").lower().startswith("utf") else _PLAIN
    table.add_row(Text(""), Text(_ruler(layers), style="dim"))
    for role, row in picture.items():
        table.add_row(Text(clean(role)), _row(row, layers, largest, bars))


def _ruler(layers: Sequence[int]) -> str:
    """The number of every eighth layer above its cell."""
    marks = "".join(str(layer).ljust(8) for layer in layers[::8])
    return marks[: max(len(layers), len(marks.rstrip()))].rstrip()


def _row(row: Mapping[int, float], layers: Sequence[int], largest: float, bars: str) -> Text:
    text = Text()
    for layer in layers:
        norm = row.get(layer)
        if norm is None:
            text.append("·", style="dim")
        elif not norm < float("inf"):
            text.append("!", style="bold red")
        else:
            share = norm / largest if 0 < largest < float("inf") else 0.0
            heat = _HEAT[min(int(share * len(_HEAT)), len(_HEAT) - 1)]
            text.append(bars[min(int(share * len(bars)), len(bars) - 1)], style=heat)
    return text


def _extras(inspection: Inspection) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    extras = inspection.bound.adapter.extras
    table.add_column(no_wrap=True)
    for key, extra in list(extras.items())[:_ROWS]:
        table.add_row(clean(key), extra.kind, extra.tensor.dtype, str(list(extra.tensor.shape)))
    return _cut(table, len(extras))
