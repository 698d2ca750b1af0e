"""Who makes fitted plans for a conversion: loads base and text, fits, and keeps what it takes to go on after a stop.

Nothing here needs torch before a plan is made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from adaptrix.binding.bind import BoundAdapter
from adaptrix.errors import Problem, UsageError
from adaptrix.fitting.place import state_file
from adaptrix.options import Options
from adaptrix.planning.plan import Plan
from adaptrix.workflow import Maker, Workshop

#: what is done and how much of it there is -> what is told of every bit that is done
Display = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def quiet(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display at all."""
    return nullcontext(lambda _count: None)


def maker_for(options: Options, workshop: Workshop, display: Display = quiet) -> Maker | None:
    """Who makes the plan that is asked for; None where a policy says it all.

    Raises :class:`UsageError` where what fitting needs is not installed.
    """
    if not options.fits:
        return None
    for module in ("torch", "transformers"):
        try:
            import_module(module)
        except ImportError:
            remedy = 'Run: pip install "adaptrix[torch]"'
            where = f"layers {options.layers}"
            raise UsageError(Problem("missing-extra", where, f"{module} is not installed", remedy=remedy)) from None
    return FitMaker(workshop, display)


@dataclass(frozen=True)
class FitMaker:
    """Makes fitted plans."""

    workshop: Workshop
    display: Display

    def __call__(self, bound: BoundAdapter, options: Options, out: Path) -> Plan:
        """The plan, fitted on the options' base and text. Raises :class:`AdaptrixError`."""
        from adaptrix.fitting.corpus import corpus
        from adaptrix.fitting.fitter import Fitter
        from adaptrix.measuring import models, text

        assert options.base is not None and options.text is not None  # noqa: PT018  # require_options saw to it
        read = text.read_text(Path(options.text).expanduser())
        base = models.stored(options.base, self.workshop, models.placement(None, None))
        ids = text.tokens_of(read, base.tokenizer()).ids
        with base.model() as model:
            models.require_in_vocabulary(model, ids, base.name)
            windows = corpus(read, ids, models.context_of(model))
            models.require_causal(model, ids, base.name)
            return Fitter(bound, model, windows, options, self.display).plan(out)

    def forget(self, out: Path) -> None:
        """Removes the state of a fit that is done."""
        state_file(out).unlink(missing_ok=True)
