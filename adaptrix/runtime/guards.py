"""Refusals of a session's calls: what would wait for itself, change under its users, or has nothing to work on."""

from __future__ import annotations

from typing import Any

from adaptrix.errors import Problem, UsageError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.modules import require_plain
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.selection import Loaded, Selection
from adaptrix.runtime.slots import Slots


def require_attached(hooks: Hooks) -> None:
    """Raises :class:`UsageError` for a session that is over."""
    if not hooks.attached:
        raise UsageError(Problem("session-state", "session", "it is detached", "", "Attach again."))


def require_not_default(loaded: Loaded, default: Selection) -> None:
    """Raises :class:`UsageError` for an adapter that is, or is part of, the default."""
    if loaded in default.adapters:
        remedy = "session.activate(None) first."
        raise UsageError(Problem("in-use", loaded.name, "it is the default", "another default", remedy))


def require_left(loaded: Loaded, users: Users) -> None:
    """Raises :class:`UsageError` for an adapter that this thread uses, and so could not wait for."""
    if users.mine(loaded):
        remedy = "Leave session.use and session.route first; start or drop the threads that session.thread made."
        raise UsageError(Problem("in-use", loaded.name, "this thread uses it", "no user but other threads", remedy))


def require_unused(loaded: Loaded, hooks: Hooks, users: Users) -> None:
    """Raises :class:`UsageError` for an adapter that cannot be unloaded: the default's, and one this thread uses."""
    require_not_default(loaded, hooks.default)
    hooks.settle()
    require_left(loaded, users)


def generating(model: Any) -> Any:
    """The model. Raises :class:`UsageError` for one without ``generate``, or whose ``generate`` would refuse."""
    can = getattr(model, "can_generate", None)
    if can is None or not can():
        found = "a model that does not generate"
        remedy = "with session.use(choice): model(**inputs)"
        raise UsageError(Problem("model-unsupported", type(model).__name__, found, "a generating model", remedy))
    return model


def require_no_slots(name: str, slots: Slots | None) -> None:
    """Raises :class:`UsageError` in a session with slots, for what is to be trained."""
    if slots is not None:
        found, remedy = "an adapter in a slot has no parameters of its own", "Train it in a session without slots."
        raise UsageError(Problem("slots", name, found, "a session without slots", remedy))


def require_trainable(loaded: Loaded, slots: Slots | None, users: Users, default: Selection) -> None:
    """Raises :class:`AdaptrixError` for an adapter that cannot become leaves, as while anybody uses it."""
    require_no_slots(loaded.name, slots)
    if loaded.gate is not None:
        found, remedy = "an activated LoRA, which is not trained here", "Train it with peft."
        raise refuse("conditional", loaded.name, found, "a LoRA for all tokens", remedy)
    require_not_default(loaded, default)
    if users.busy(loaded):
        remedy = "Ask for its parameters before session.use."
        raise UsageError(Problem("in-use", loaded.name, "it is in use", "an adapter that is not in use", remedy))


def require_graph(model: object, slots: Slots | None, drift: object) -> None:
    """Raises :class:`AdaptrixError` for a model that is compiled already, and in a session whose selections one graph
    cannot serve."""
    require_plain(model)
    if slots is None or drift is not None:
        found = "a session without slots" if slots is None else "a session that measures drift"
        remedy = "adaptrix.attach(model, …, slots=8), without max_drift and measure"
        raise UsageError(Problem("slots", "session.compile", found, "adapters in slots, and no drift", remedy))


def require_choices(choices: object) -> None:
    """Raises :class:`UsageError` for anything but a list of choices for :meth:`Session.prefill_shared`."""
    if isinstance(choices, str) or not choices:
        found = f"one name, {choices!r}" if choices else "no choices"
        expected = "a list of at least one choice"
        raise UsageError(Problem("option", "prefill_shared", found, expected, "None is the base."))


def planned(loaded: Loaded) -> Plan:
    """The plan of an adapter. Raises :class:`UsageError` for one that was adopted without."""
    if loaded.plan is None:
        found = "its kernels were given as they are"
        raise UsageError(Problem("option", loaded.name, found, "an adapter that was loaded"))
    return loaded.plan
