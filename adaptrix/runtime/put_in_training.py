"""Adapters of a session that become leaves of autograd."""

from __future__ import annotations

from dataclasses import replace

from adaptrix.runtime import guards
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.selection import Loaded
from adaptrix.runtime.slots import Slots
from adaptrix.runtime.trainable import Trainable
from adaptrix.runtime.training import learned


def in_training(loaded: Loaded) -> bool:
    """True where the numbers of an adapter are leaves already."""
    return any(isinstance(change, Trainable) for change in loaded.kernels.values())


def put_in_training(loaded: Loaded, hooks: Hooks, slots: Slots | None, users: Users) -> Loaded:
    """The adapter with leaves for its numbers; the base takes no gradients from now on.

    Raises :class:`AdaptrixError` as :func:`adaptrix.runtime.guards.require_trainable` and :func:`learned` do.
    """
    guards.require_trainable(loaded, slots, users, hooks.default)
    loaded = replace(loaded, kernels=learned(guards.planned(loaded), hooks.modules, loaded.kernels))
    hooks.freeze()
    return loaded
