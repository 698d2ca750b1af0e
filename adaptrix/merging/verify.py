"""Holds a merged model to its base with the adapter attached: the logits of both on the same tokens.

Both are run in fp32, one after the other, so that what is seen is what rounding the merged weights has cost, and
nothing else. The tokens are random and seeded: they say whether two models are one, not how good either is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from adaptrix.attaching import attach
from adaptrix.base.loading import in_fp32
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.merging.agreement import Agreement
from adaptrix.merging.draft import MergePlan
from adaptrix.merging.inputs import answer, seeded_inputs
from adaptrix.merging.model_files import write_model
from adaptrix.merging.options import MergeOptions, QloraBase
from adaptrix.options import dtype_name

#: largest difference of a logit that rounding explains, in standard deviations of the logits, by dtype of the weights
TOLERANCE = {"F64": 1e-3, "F32": 1e-3, "F16": 5e-2, "BF16": 0.3}
#: looks at what was written before it is there for all to see; raises where it is no good
Check = Callable[[Path], Agreement]


@dataclass(frozen=True, eq=False)
class Reference:
    """What a base answers with an adapter attached, and without it."""

    attached: Tensor
    plain: Tensor
    inputs: Mapping[str, Tensor]

    def agreement(self, folder: Path) -> Agreement:
        """How the model in a folder compares."""
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


def reference(made: MergePlan, folder: Path, layers: str | None) -> Reference:
    """What the base in ``folder`` answers. Raises :class:`RefusedError` for an adapter that cannot be attached."""
    with _model(folder) as model:
        inputs = seeded_inputs(model)
        plain = answer(model, inputs)
        try:
            session = attach(model, {"merged": made.plan.bound.adapter}, layers=layers)
        except RefusedError as error:
            found, remedy = "it cannot be attached to its base to be compared with", "Merge without --verify."
            why = Problem("verification-impossible", made.plan.bound.adapter.name, found, remedy=remedy)
            raise RefusedError((why, *error.problems)) from None
        with session:
            session.activate("merged")
            return Reference(answer(model, inputs), plain, inputs)


def verifier(made: MergePlan, options: MergeOptions, room: Path) -> Check:
    """What judges a merged model; the base answers now, so that one that cannot be compared is not written.

    ``room``: a folder to put models in that nobody keeps.
    """
    if options.qlora_base is not None:
        return _on_nf4(made, options, room)
    answers = _answers(made, options, room)
    return lambda folder: _held(answers.agreement(folder), made, options)


def _answers(made: MergePlan, options: MergeOptions, room: Path) -> Reference:
    """What the base answers; as safetensors where its files are pickles, which transformers would open as such."""
    if not made.base.pickled:
        return reference(made, made.base.folder, options.layers)
    alone = replace(made, changes={}, vocabulary=None)
    with _written(alone, replace(options, dtype=None), room) as folder:
        return reference(made, folder, options.layers)


def _on_nf4(made: MergePlan, options: MergeOptions, room: Path) -> Check:
    """Judges by the base in NF4, and tells of the merge into the other base as well."""
    with _written(made.base_alone(), options, room) as alone:
        answers = reference(made, alone, options.layers)
    other: QloraBase = "bf16" if options.qlora_base == "nf4" else "nf4"
    with _written(made.on(other), options, room) as folder:
        beside = answers.agreement(folder).kl

    def check(folder: Path) -> Agreement:
        found = answers.agreement(folder)
        kl = {str(options.qlora_base): found.kl, other: beside}
        found = replace(found, kl_on={base: kl[base] for base in sorted(kl)})
        return _held(found, made, options) if options.qlora_base == "nf4" else found

    return check


@contextmanager
def _written(made: MergePlan, options: MergeOptions, room: Path) -> Iterator[Path]:
    """A model on the disk for a while."""
    with TemporaryDirectory(prefix=".adaptrix-", dir=room) as folder:
        write_model(made, Path(folder), options.dtype)
        yield Path(folder)


def _held(found: Agreement, made: MergePlan, options: MergeOptions) -> Agreement:
    """The agreement itself. Raises :class:`RefusedError` where rounding does not explain the difference."""
    tolerance = _tolerance(made, options.dtype)
    if not found.relative <= tolerance:  # nor NaN
        text, wanted = f"merged, the model is another one: {found}", f"at most {tolerance:g} of their spread"
        raise refuse("verification-failed", made.plan.bound.adapter.name, text, wanted, _REMEDY)
    return found


def _tolerance(made: MergePlan, dtype: str | None) -> float:
    """The largest of those of the dtypes that the merged weights are rounded to."""
    tensors = made.base.tensors()
    rounded = {dtype_name(dtype)} if dtype else {tensors[name].dtype for name in made.changes}
    return max((TOLERANCE.get(name, TOLERANCE["BF16"]) for name in rounded), default=TOLERANCE["F32"])


_REMEDY = "Nothing was written. Does the config name the class of the model that the adapter was trained on?"


@contextmanager
def _model(folder: Path) -> Iterator[Any]:
    """The model of a folder, in fp32, by the class that its config names; gone at the end."""
    try:
        yield in_fp32(folder, str(folder))
    finally:
        gc.collect()
