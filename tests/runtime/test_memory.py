"""What a session remembers is bounded, however many choices it has seen."""

import gc
from collections import Counter

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.selection import Resident, Selection
from tests.helpers.attached import logits, saved
from tests.helpers.families import tiny_model
from tests.helpers.slots import chosen

NAMES = [f"a{number}" for number in range(6)]
SMALL = torch.tensor([[1, 2]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama")
    for seed, name in enumerate(NAMES):
        saved(base, folder / name, seed=seed, rank=2, target_modules=["q_proj"])
    return {name: folder / name for name in NAMES}


def alive():
    """The number of objects of each class that a session makes."""
    gc.collect()
    kinds = (Selection, Resident, Kernel, Reached, torch.Tensor)
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


def passes(model, session, choices):
    for choice in choices:
        with chosen(session, choice):
            logits(model, input_ids=SMALL.expand(len(choice) if isinstance(choice, list) else 1, -1))


def alone(turn):
    return NAMES[turn % 6]


def weights(turn):
    return {NAMES[turn % 6]: 1 / (turn + 1), NAMES[(turn + 1) % 6]: 0.5}


def rows(turn):
    return [NAMES[(turn >> shift) % 6] for shift in (0, turn % 3)]


@pytest.mark.parametrize("options", [{}, {"slots": 2, "max_rank": 4}], ids=["plain", "slots"])
@pytest.mark.parametrize("choice", [alone, weights, rows])
def test_choices_of_the_past_are_not_kept(folders, choice, options):
    """A server pages for weeks: a few kB each time would fill its memory."""
    model = tiny_model("llama").eval()
    with attach(model, folders, **options) as session:
        passes(model, session, map(choice, range(16)))
        before = alive()
        passes(model, session, map(choice, range(16, 16 + 36)))
        more = alive() - before
    assert max(more.values(), default=0) < 30, more


def test_factors_of_the_past_are_not_kept(folders):
    model = tiny_model("llama").eval()
    weight = model.model.layers[0].self_attn.q_proj.weight
    with attach(model, folders) as session:

        def turn():
            pair = torch.randn(1, 2, weight.shape[1]), torch.randn(1, weight.shape[0], 2)
            with session.given({"model.layers.0.self_attn.q_proj": pair}):
                logits(model, input_ids=SMALL)

        turn()
        before = alive()
        for _ in range(60):
            turn()
        assert max((alive() - before).values(), default=0) < 20
