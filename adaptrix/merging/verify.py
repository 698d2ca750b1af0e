"""The comparison of a merged model with its base with the adapter attached: logits of both on the same tokens.

Both are run in fp32, one after the other, so that the rounding of the merged weights is all that differs. The tokens
are random and seeded: they show whether the two models are the same, not how good they are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from adaptrix.adapter import Adapter
from adaptrix.attaching import attach
from adaptrix.base.loading import in_fp32
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.merging.agreement import Agreement
from adaptrix.merging.draft import MergePlan
from adaptrix.merging.inputs import answer, seeded_inputs
from adaptrix.merging.model_files import write_model
from adaptrix.merging.options import MergeOptions, QloraBase
from adaptrix.wording import some

#: largest difference of a logit that rounding explains, in standard deviations of the logits, by dtype of the weights
TOLERANCE = {"F64": 1e-3, "F32": 1e-3, "F16": 5e-2, "BF16": 0.3}
#: compares a merged model in a folder before it is moved to the output; raises where it differs
Verifier = Callable[[Path], Agreement]


@dataclass(frozen=True, eq=False)
class Reference:
    """The logits of a base with an adapter attached and without it, on ``inputs``."""

    attached: Tensor
    plain: Tensor
    inputs: Mapping[str, Tensor]

    def agreement(self, folder: Path) -> Agreement:
        """The agreement of the model in a folder."""
        with _model(folder) as model:
            merged = answer(model, self.inputs)
        probabilities, own = self.attached.double().log_softmax(-1), merged.double().log_softmax(-1)
        return Agreement(
            largest=float((merged - self.attached).abs().max()),
            spread=float(self.attached.std()),
            top1=float((merged.argmax(-1) == self.attached.argmax(-1)).float().mean()),
            kl=float((probabilities.exp() * (probabilities - own)).sum(-1).mean()),
            effect=float((self.attached - self.plain).abs().max()),
            tokens=merged.shape[:-1].numel(),
        )


def reference(merge: MergePlan, folder: Path, layers: str | None) -> Reference:
    """The answers of the base in ``folder``. Raises :class:`RefusedError` for an adapter that cannot be attached."""
    with _model(folder) as model:
        inputs = seeded_inputs(model)
        plain = answer(model, inputs)
        try:
            session = attach(model, {"merged": _chosen(merge.plan.bound.adapter)}, layers=layers)
        except RefusedError as error:
            found, remedy = "it cannot be attached to its base to be compared with", "Merge without --verify."
            why = Problem("verification-impossible", merge.plan.bound.adapter.name, found, remedy=remedy)
            raise RefusedError((why, *error.problems)) from None
        with session:
            session.activate("merged")
            made = Reference(answer(model, inputs), plain, inputs)
            _require_called(session.report().never_called, merge.plan.bound.adapter.name)
            return made


def _require_called(never: Sequence[str], name: str) -> None:
    """Raises :class:`RefusedError` where modules are never called: only merged do their deltas act."""
    if never:
        said = f"attached, deltas of modules that the model never calls do nothing: {some(never, 3)}"
        remedy = "Nothing was written. Merge without --verify: merged, they act, as peft's merge of them does."
        raise refuse("verification-impossible", name, said, "modules that are called", remedy)


def _chosen(adapter: Adapter) -> Adapter:
    """The adapter, whose file's plan the merge itself warns of."""
    return replace(adapter, recorded=adapter.recorded and replace(adapter.recorded, chosen=True))


def verifier(merge: MergePlan, options: MergeOptions, room: Path) -> Verifier:
    """The verifier of a merged model. The base answers now, so that an adapter that cannot be attached stops it here.

    ``room``: a folder for temporary models.
    """
    if options.qlora_base is not None:
        return _on_nf4(merge, options, room)
    answers = _answers(merge, options, room)
    return lambda folder: _accepted(answers.agreement(folder), merge, options)


def _answers(merge: MergePlan, options: MergeOptions, room: Path) -> Reference:
    """The answers of the base; its pickles are converted to safetensors first, so that transformers opens none."""
    if not merge.base.pickled:
        return reference(merge, merge.base.folder, options.layers)
    alone = replace(merge, changes={}, vocabulary=None)
    with _written(alone, replace(options, dtype=None), room) as folder:
        return reference(merge, folder, options.layers)


def _on_nf4(merge: MergePlan, options: MergeOptions, room: Path) -> Verifier:
    """A verifier against the base in NF4, which also measures the merge into the other base."""
    with _written(merge.base_alone(), options, room) as alone:
        answers = reference(merge, alone, options.layers)
    other: QloraBase = "bf16" if options.qlora_base == "nf4" else "nf4"
    with _written(merge.on(other), options, room) as folder:
        beside = answers.agreement(folder).kl

    def check(folder: Path) -> Agreement:
        found = answers.agreement(folder)
        kl = {str(options.qlora_base): found.kl, other: beside}
        found = replace(found, kl_on={base: kl[base] for base in sorted(kl)})
        return _accepted(found, merge, options) if options.qlora_base == "nf4" else found

    return check


@contextmanager
def _written(merge: MergePlan, options: MergeOptions, room: Path) -> Iterator[Path]:
    """The folder of a temporary merged model."""
    with TemporaryDirectory(prefix=".adaptrix-", dir=room) as folder:
        write_model(merge, Path(folder), options.dtype)
        yield Path(folder)


def _accepted(found: Agreement, merge: MergePlan, options: MergeOptions) -> Agreement:
    """The agreement itself. Raises :class:`RefusedError` where rounding does not explain the difference."""
    tolerance = _tolerance(merge, options.dtype)
    if not found.relative <= tolerance:  # nor NaN
        text, expected = f"merged, the model is another one: {found}", f"at most {tolerance:g} of their spread"
        raise refuse("verification-failed", merge.plan.bound.adapter.name, text, expected, _REMEDY)
    return found


def _tolerance(merge: MergePlan, dtype: str | None) -> float:
    """The largest of those of the dtypes that the merged weights are rounded to."""
    tensors = merge.base.tensors()
    rounded = {dtype_name(dtype)} if dtype else {tensors[name].dtype for name in merge.changes}
    return max((TOLERANCE.get(name, TOLERANCE["BF16"]) for name in rounded), default=TOLERANCE["F32"])


_REMEDY = "Nothing was written. Does the config name the class of the model that the adapter was trained on?"


@contextmanager
def _model(folder: Path) -> Iterator[Any]:
    """The model of a folder, in fp32, by the class that its config names; gone at the end."""
    try:
        yield in_fp32(folder, str(folder))
    finally:
        gc.collect()
