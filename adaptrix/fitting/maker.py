"""Fitted plans for a conversion: loads base and text, fits, and keeps a state from which an interrupted fit resumes.

torch is imported when a plan is made, not before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix.binding.bind import BoundAdapter
from adaptrix.destination import state_file
from adaptrix.measuring.options import require_file
from adaptrix.optional import require
from adaptrix.options import Options, require_options
from adaptrix.pipeline import Maker, Pipeline
from adaptrix.planning.plan import Plan
from adaptrix.progress import Counted, uncounted

if TYPE_CHECKING:
    from adaptrix.measuring.text import Text


def maker_for(options: Options, pipeline: Pipeline, display: Counted = uncounted) -> Maker | None:
    """The maker of the plan that the options ask for; None where no fit is needed.

    Raises :class:`AdaptrixError` where the text cannot be read, and where torch or transformers is not installed.
    """
    require_options(options)
    if not options.wants_fit:
        return None
    path = Path(os.path.expanduser(options.text or ""))
    require_file(path)  # before torch is imported, which takes seconds
    for module in ("torch", "transformers"):
        require(module, "torch", f"layers {options.layers}")
    from adaptrix.measuring.text import read_text

    return PlanFitter(pipeline, display, read_text(path))


@dataclass(frozen=True)
class PlanFitter:
    """Makes fitted plans."""

    pipeline: Pipeline
    display: Counted
    text: Text

    def __call__(self, bound: BoundAdapter, options: Options, out: Path) -> Plan:
        """The plan, fitted on the options' base and text. Raises :class:`AdaptrixError`."""
        from adaptrix.base.model import base_model_at, context_of, placement, require_causal, require_in_vocabulary
        from adaptrix.fitting.corpus import corpus
        from adaptrix.fitting.fitter import Fitter, aim
        from adaptrix.measuring.text import tokens_of

        assert options.base is not None  # require_options saw to it
        aimed = aim(bound, options)
        base = base_model_at(options.base, self.pipeline, placement(None, None))
        ids = tokens_of(self.text, base.tokenizer()).ids
        with base.model() as model:
            require_in_vocabulary(model, ids, base.name)
            windows = corpus(self.text, ids, context_of(model))
            require_causal(model, ids, base.name)
            return Fitter(bound, aimed, model, windows, options, self.display).plan(out)

    def forget(self, out: Path) -> None:
        """Removes the state of a fit that is done."""
        state_file(out).unlink(missing_ok=True)
