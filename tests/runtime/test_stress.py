"""A session under threads and asyncio tasks at once; `make test-slow` does it for longer."""

import warnings

import pytest
import torch

from adaptrix.errors import AdaptrixWarning
from benchmarks.stress_session import SLOTS, run

KINDS = {"use", "route", "generate", "thread", "swap", "reloaded", "own", "kept", "task", "to_thread", "default"}


def outcome(seconds, slots):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdaptrixWarning)
            return run(seconds, threads=4, tasks=3, seed=3, slots=slots)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("slots", [None, SLOTS])
def test_no_answer_is_wrong_and_nothing_stays_in_use(slots):
    trial = outcome(1, slots)
    assert not trial.failures, trial.failures[0]
    assert trial.done["task"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, SLOTS])
def test_no_answer_is_wrong_in_a_minute(slots):
    trial = outcome(30, slots)
    assert not trial.failures, trial.failures[0]
    assert trial.done.keys() >= KINDS
