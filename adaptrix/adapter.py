"""An adapter as its checkpoint has it: deltas by module path, the other tensors of the files, and their
provenance. No architecture is known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from adaptrix.architecture.dims import Dims
from adaptrix.delta import Delta
from adaptrix.errors import Problem, RefusedError, errors_in
from adaptrix.tensor import Tensor

ExtraKind = Literal["module", "bias", "base_weight", "token_delta", "training", "shared"]


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """The weight a delta changes: a module path, or one of ``slots`` equal parts of a fused one.

    Only the legacy MergedLinear needs the latter: its checkpoint says "parts 0 and 2 of 3", and which
    part that is the architecture knows.
    """

    path: str
    slot: int | None = None
    slots: int | None = None

    def __str__(self) -> str:
        return self.path if self.slot is None else f"{self.path}[{self.slot + 1}/{self.slots}]"


@dataclass(frozen=True, slots=True, eq=False)
class Extra:
    """A tensor that is no delta: a trained head, a bias, a resized embedding, trained tokens.

    ``kind``: ``module`` replaces a module's tensor (modules_to_save), ``bias`` replaces a bias,
    ``base_weight`` is the base's own weight saved along with a delta on it, ``token_delta`` holds new
    rows of an embedding, ``training`` is read by the adapter's own training alone, ``shared`` is a part of all deltas.
    """

    kind: ExtraKind
    tensor: Tensor

    @property
    def acts(self) -> bool:
        """True for what is to stand in a model that runs."""
        return self.kind not in ("training", "shared")


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of an adapter. ``files``: sha256 by name; ``config``: the format's own, verbatim."""

    uri: str
    format: str
    commit: str | None = None
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class FitRecord:
    """The record of a fit: its settings, and the KL before and after.

    - ``text``: SHA-256 of the text.
    - ``tokens``: the length of the text.
    - ``steps``: the most steps that were allowed.
    - ``taken``: the steps after which the result no longer improved.
    - ``seed``: of the training.
    - ``before``, ``after``: KL(full ‖ plan) in nats a token on windows that were not trained on, with the adapter's own
      deltas on the plan's layers and with the fitted ones.
    """

    text: str
    tokens: int
    steps: int
    taken: int
    seed: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Recorded:
    """The binding and the plan that an injection file was written with.

    ``sites`` gives the site name of each target and ``overrides`` the deltas that replace it by site
    name; ``notes`` say what the plan lost when it was made, ``fit`` how it was fitted, if it was; ``known`` is False
    where no family was known. ``chosen``: the plan was chosen by whoever runs this, and not by a file.
    """

    family: str
    known: bool
    dims: Dims
    policy: str
    layers: Mapping[str, tuple[int, ...]]
    gains: Mapping[int, float]
    sites: Mapping[Target, str]
    overrides: Mapping[str, Delta]
    notes: tuple[str, ...] = ()
    fit: FitRecord | None = None
    chosen: bool = False

    @property
    def verified(self) -> bool:
        """True where a base's config stated the dims; inferred dims are checked again against a base."""
        return "config" in self.dims.origins.values()


def nothing_targeted(path: str) -> bool:  # noqa: ARG001  # called as any ``targeted`` is
    """The ``targeted`` of an adapter without a config: nothing is promised, so nothing can be missing."""
    return False


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Deltas by target, extras by the key their checkpoint gives them, and where both came from.

    ``base`` is the id of the model it was made for, where known. ``problems`` is all that reading
    found; an adapter with errors among them can be looked at, and is refused by every other step.
    ``altered``: the deltas are no longer those that the provenance's config describes. ``recorded``
    is set for an injection file. ``targeted``: True for the path of a module or parameter, as the checkpoint spells
    it, on which the config promises a delta if the model has one there. ``dialect``: the format in whose names its
    targets are, empty where they are module paths; ``family``: what the file itself calls the family of its base.
    """

    name: str
    deltas: Mapping[Target, Delta]
    extras: Mapping[str, Extra]
    provenance: Provenance
    base: str | None = None
    problems: tuple[Problem, ...] = ()
    altered: bool = False
    recorded: Recorded | None = None
    targeted: Callable[[str], bool] = nothing_targeted
    dialect: str = ""
    family: str = ""

    def __repr__(self) -> str:
        """Name and counts: an adapter holds hundreds of tensors."""
        counts = f"{len(self.deltas)} deltas, {len(self.extras)} extras, {len(self.problems)} problems"
        return f"<Adapter {self.name!r}: {counts}>"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, with a name for messages: ``model.layers.0.self_attn.q_proj lora_A``."""
        planned = self.recorded.overrides if self.recorded else {}
        deltas = [(str(t), d) for t, d in self.deltas.items()] + [(f"plan.{s}", d) for s, d in planned.items()]
        for where, delta in deltas:
            for name, tensor in delta.tensors().items():
                yield f"{where} {name}", tensor
        for key, extra in self.extras.items():
            yield key, extra.tensor

    def require_sound(self) -> Adapter:
        """The adapter itself; raises :class:`RefusedError` with all errors that reading found."""
        if errors := errors_in(self.problems):
            raise RefusedError(errors)
        return self
