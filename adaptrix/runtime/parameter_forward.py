"""The forward of a module whose parameters adapters change, put on it for as long as a session is attached.

It runs the class's own forward on a shallow copy of the module that has other tensors in the place of these parameters.
The module itself is never written, so threads do not see each other's adapters. transformers' experts have faster ways
than their loop, which need all experts in one tensor: with an adapter active the loop runs, which asks for one expert
at a time and so never needs W + ΔW of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from adaptrix.architecture import Site
from adaptrix.errors import Problem, refuse
from adaptrix.runtime.compiling import apart
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.parameter_kernel import ChangedParameter, ParameterKernel

_NO_DRIFT = "Leave out max_drift and measure, or attach with layers=… that leave such modules out."
#: the changes that act at a module now, by the name of the parameter
Changes = Callable[[], Mapping[str, ParameterKernel]]
#: the field in which a transformers config keeps how experts are computed; the attribute without "internal" would
#: write it into configs inside of this one, too
_IMPLEMENTATION = "_experts_implementation_internal"


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A forward on a module, in the attribute that its caller reads; :meth:`remove` puts back what was there."""

    module: nn.Module
    attribute: str
    before: Any

    def remove(self) -> None:
        if self.before is None:
            vars(self.module).pop(self.attribute, None)
        else:
            vars(self.module)[self.attribute] = self.before


def place_forward(module: nn.Module, changes: Changes) -> Placed:
    """Puts a forward on a module that :func:`has_own_forward`; what is returned takes it off.

    accelerate keeps a module's forward as ``_old_forward`` and calls it with the weights in place.
    """
    attribute = _attribute(module)
    placed = Placed(module, attribute, vars(module).get(attribute))
    vars(module)[attribute] = _forward(module, getattr(module, attribute), changes)
    return placed


def has_own_forward(module: nn.Module) -> bool:
    """True for a module that runs the forward of its class, under accelerate or not."""
    found = getattr(module, _attribute(module))
    return getattr(found, "__func__", None) is type(module).forward


def occupied(
    built: Mapping[Site, object], modules: Mapping[Site, Reached], served: Mapping[Site, Reached], *, measured: bool
) -> Iterator[Problem]:
    """A problem for each change of a parameter inside of a module that runs another forward than its class's.

    ``served``: what the session has loaded adapters for, where the forward is its own. ``measured``: the session
    measures or bounds drift, which such a change has none of.
    """
    known = {reached.module for reached in list(served.values()) if reached.parameter is not None}
    for site in (site for site, kernel in built.items() if isinstance(kernel, ParameterKernel)):
        reached = modules[site]
        where, kind = f"{reached.name}.{reached.parameter}", type(reached.module).__name__
        if measured:
            found = f"{ParameterKernel.described}: no ΔW·x comes out of a {kind} by itself, so there is no drift"
            yield Problem("module-unsupported", where, found, "a session that measures no drift", _NO_DRIFT)
        if reached.module not in known and not has_own_forward(reached.module):
            found = f"its forward was replaced, and no longer is that of {kind}"
            remedy = "Detach the other session, or undo the patch, and attach again."
            yield Problem("model-wrapped", where, found, "the forward of its class", remedy)


def _attribute(module: nn.Module) -> str:
    return "_old_forward" if "_hf_hook" in vars(module) else "forward"


def _forward(module: nn.Module, own: Callable[..., Any], changes: Changes) -> Callable[..., Any]:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return apart(_run, module, changes, own, args, kwargs)
        return _run(module, changes, own, args, kwargs)

    return forward


def _run(
    module: nn.Module, changes: Changes, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    active = changes()
    if not active:
        return own(*args, **kwargs)
    parameters = _Parameters(module._parameters, active)
    answer = type(module).forward(_twin(module, parameters), *args, **kwargs)
    unread = active.keys() - parameters.read
    if unread and all(each.numel() for each in args if isinstance(each, Tensor)):  # no token reads no expert
        found = "its forward does not read this parameter, so that the adapter would do nothing"
        where = f"{type(module).__name__}.{min(unread)}"
        raise refuse("module-unsupported", where, found, "a parameter that is read", "Merge the adapter instead.")
    return answer


class _Parameters(dict[str, Any]):
    """The parameters of a module with changes in their places; it notes which of them were read."""

    def __init__(self, own: Mapping[str, Tensor | None], active: Mapping[str, ParameterKernel]) -> None:
        super().__init__(own)
        self._active, self.read = active, set[str]()

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if name not in self._active or found is None:
            return found
        self.read.add(name)
        return ChangedParameter(found, self._active[name])


def _twin(module: nn.Module, parameters: _Parameters) -> nn.Module:
    """A module of the same class that shares all but these parameters, and computes experts one by one."""
    other = object.__new__(type(module))
    fields = {**vars(module), "_parameters": parameters}
    fields.pop("forward", None)
    config = fields.get("config")
    if config is not None and vars(config).get(_IMPLEMENTATION, "eager") != "eager":
        fields["config"] = object.__new__(type(config))
        vars(fields["config"]).update({**vars(config), _IMPLEMENTATION: "eager"})
    vars(other).update(fields)
    return other
