"""The figures of a session: injections, swaps, drift, paging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adaptrix.architecture import Site
from adaptrix.runtime.drift import Drift
from adaptrix.runtime.report_table import table
from adaptrix.runtime.slots import Slots
from adaptrix.wording import some


@dataclass(frozen=True, slots=True, repr=False)
class SessionReport:
    """Counts since a session began. ``layers_kept``: layers of caches that swaps and shared prefills did not run.

    Drift is ‖d‖/‖y‖ a token and module; None where the session does not measure it. ``paged``: the number of times
    that an adapter was put into a slot; None without slots. ``never_called``: active sites that a whole pass left
    out, so that what is attached to them does nothing. ``print`` shows a table with a row for each role.
    """

    injections: Mapping[str, int]
    swaps: int
    layers_kept: int
    tokens_clamped: int | None
    mean_drift: float | None
    max_drift: float | None
    paged: int | None
    never_called: tuple[str, ...]

    def __repr__(self) -> str:
        """Totals: a model has hundreds of modules."""
        never = sum(not count for count in self.injections.values())
        counts = (
            f"{len(self.injections)} modules, {never} of them never injected, {sum(self.injections.values())} times"
        )
        return f"<SessionReport: {counts}; {self._rest()}>"

    def __str__(self) -> str:
        """The injections by role, and the other counts under them."""
        return "\n".join([*table(self.injections), self._rest()])

    def _rest(self) -> str:
        said = [f"swaps {self.swaps}", f"layers kept {self.layers_kept}"]
        if self.mean_drift is not None:
            said.append(f"drift {self.mean_drift:.3g} on average, {self.max_drift:.3g} at most")
            said.append(f"tokens clamped {self.tokens_clamped}")
        if self.paged is not None:
            said.append(f"pagings {self.paged}")
        if self.never_called:
            said.append(f"never called: {some(self.never_called, 3)}")
        return ", ".join(said)


def report_of(
    injections: Mapping[Site, int],
    never_called: Iterable[Site],
    drift: Drift | None,
    slots: Slots | None,
    swaps: int,
    kept: int,
) -> SessionReport:
    """The counts as they are now."""
    return SessionReport(
        injections={str(site): count for site, count in injections.items()},
        swaps=swaps,
        layers_kept=kept,
        tokens_clamped=None if drift is None else drift.clamped,
        mean_drift=None if drift is None else drift.mean,
        max_drift=None if drift is None else drift.largest,
        paged=None if slots is None else slots.paged,
        never_called=tuple(map(str, never_called)),
    )
