"""The figures of a session: injections, swaps, drift, paging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionReport:
    """Counts since a session began. ``layers_kept``: layers of caches that swaps and shared prefills did not run.

    Drift is ‖d‖/‖y‖ a token and module; None where the session does not measure it. ``paged``: the number of times
    that an adapter was put into a slot; None without slots. ``never_called``: active sites that a whole pass left
    out, so that what is attached to them does nothing.
    """

    injections: Mapping[str, int]
    swaps: int
    layers_kept: int
    tokens_clamped: int | None
    mean_drift: float | None
    max_drift: float | None
    paged: int | None
    never_called: tuple[str, ...]
