"""What the benchmark of the evidence asks is asked of tasks that were kept, in words that tell them apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.text_to_lora.embedding import Embedding
from benchmarks.world.descriptions import SEEN, UNSEEN
from benchmarks.world.examples import inputs
from benchmarks.world.splits import split


@pytest.mark.parametrize("seed", range(5))
def test_no_task_that_is_trained_on_does_what_a_kept_one_does(seed):
    tasks, digits = split(seed), torch.cat([torch.from_numpy(part) for part in inputs(seed)]).numpy()
    taught = {task(digits).tobytes() for task in (*tasks.library, *tasks.more)}
    kept = {task(digits).tobytes() for task in (*tasks.parameters, *tasks.compositions)}
    assert not taught & kept
    assert len(tasks.library) == 64
    assert len(tasks.more) > 32
    assert not set(tasks.more) & set(tasks.library)


def test_kept_wordings_are_embedded_beside_those_of_their_task():
    tasks = split(0)
    embedding = Embedding.fitted(tasks.library, SEEN)
    known, asked = embedding(tasks.library, SEEN), embedding(tasks.library, UNSEEN)
    torch.testing.assert_close(asked.square().mean(-1), torch.ones(len(tasks.library), len(UNSEEN)))
    like = normalize(asked.mean(1), dim=-1) @ normalize(known.mean(1), dim=-1).T
    assert (like.argmax(1) == torch.arange(64)).float().mean() > 0.95
    again = Embedding.fitted(tasks.library, SEEN)(tasks.library[:2], UNSEEN)
    assert torch.equal(asked[:2], again)
