"""How long everything trains: the whole run, and the quick one that only checks that the benchmark works."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.world.base import Pretraining
from benchmarks.world.examples import MEASURED

ROLES, RANK = "q k v o", 4
SCALE = 16 / RANK**0.5  # alpha 16, rsLoRA


@dataclass(frozen=True, slots=True)
class Plan:
    """``generator``: steps of fine-tuning, of the multi-task LoRA too, both on ``tasks`` × ``rows`` examples a step;
    ``library``: steps of each LoRA; ``reconstruction``: steps of it, each on the whole library; ``measured``: inputs
    of each task to measure on."""

    base: Pretraining
    library: int
    generator: int
    reconstruction: int
    rate: float = 2e-3
    tasks: int = 32
    rows: int = 4
    measured: int = MEASURED


FULL = Plan(Pretraining(), library=250, generator=1200, reconstruction=400)
QUICK = Plan(Pretraining(steps=300), library=50, generator=120, reconstruction=5, measured=8)
