"""The world that the evidence for the plugins is measured on: nothing in it may say more than it should."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import peft
import pytest
import torch

from benchmarks.world import lora
from benchmarks.world.base import Pretraining, base
from benchmarks.world.descriptions import UNSEEN, WAYS, describe
from benchmarks.world.examples import examples, inputs, right
from benchmarks.world.operations import MODULUS, Affine, Cipher, Composed, Exchange, Reverse, Rotate, Sort
from benchmarks.world.splits import families, split
from benchmarks.world.vocabulary import PROMPT, notation, tokens, vocabulary

EVERY = [task for family in families().values() for task in family]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return base(3, tmp_path_factory.mktemp("world"), Pretraining(steps=2, texts=8))


def test_operations_do_what_they_are_called():
    digits = np.array([[0, 3, 1, 4]])
    done = {
        Affine(2, 3): [3, 4, 0, 1],
        Cipher(((0, 4), (1, 2))): [4, 3, 2, 0],
        Rotate(1): [3, 1, 4, 0],
        Exchange(0, 2): [1, 3, 0, 4],
        Reverse(): [4, 1, 3, 0],
        Sort(up=False): [4, 3, 1, 0],
        Composed(Reverse(), Affine(1, 1)): [0, 2, 4, 1],
    }
    assert {task: task(digits)[0].tolist() for task in done} == done


@pytest.mark.parametrize("seed", range(5))
def test_kept_tasks_are_not_in_the_library_but_all_that_they_are_made_of_is_said_there(seed):
    chosen = split(seed)
    kept = (*chosen.parameters, *chosen.compositions)
    assert (len(chosen.library), len(kept)) == (64, 28)
    assert not set(chosen.library) & set(kept)
    known = {word for task in chosen.library for way in range(WAYS) for word in describe(task, way).split()}
    assert known >= {word for task in kept for way in range(WAYS) for word in describe(task, way).split()}


def test_kept_tasks_do_something_that_no_task_of_the_library_does():
    digits = np.concatenate(inputs(0))
    for seed in range(5):
        chosen = split(seed)
        done = {task(digits).tobytes() for task in chosen.library}
        assert not any(task(digits).tobytes() in done for task in (*chosen.parameters, *chosen.compositions))


def test_a_sentence_means_one_task_and_unseen_sentences_are_new():
    said = Counter(describe(task, way) for task in EVERY for way in range(WAYS))
    assert set(said.values()) == {1}
    seen = {describe(task, way) for task in EVERY for way in range(WAYS) if way not in UNSEEN}
    assert not seen & {describe(task, way) for task in EVERY for way in UNSEEN}


def test_no_description_is_written_in_the_notation():
    assert not {notation(task) for task in EVERY} & {describe(task, way) for task in EVERY for way in range(WAYS)}
    assert all(tokens(notation(task)) for task in EVERY)


def test_a_prompt_is_its_input_and_nothing_else():
    train, test = inputs(1)
    assert not {tuple(row) for row in train} & {tuple(row) for row in test}
    ids = examples(EVERY[:7], test)
    assert all(torch.equal(ids[0, :, :PROMPT], other[:, :PROMPT]) for other in ids)
    assert int(ids[..., 1 : PROMPT - 1].max()) < MODULUS < len(vocabulary())


def test_a_base_is_trained_once_and_is_that_of_its_seed(tmp_path):
    recipe = Pretraining(steps=2, texts=8)
    first, again = base(0, tmp_path / "a", recipe), base(0, tmp_path / "b", recipe)
    other, cached = base(1, tmp_path / "a", recipe), base(0, tmp_path / "a", recipe)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, cached.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_rows_go_through_their_own_lora_as_peft_would_run_it(model):
    leaves = lora.fresh(model, "q v", 2, 4, torch.Generator().manual_seed(0))
    for pair in leaves.values():
        torch.nn.init.normal_(pair[1], std=0.3)
    ids = examples(EVERY[:2], inputs(0)[1][:3])
    with lora.acting(model, leaves, 1.5), torch.no_grad():
        both = model(input_ids=ids.flatten(0, 1)).logits
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(base_copy(model), config)
    for index, rows in enumerate(both.chunk(2)):
        for name, (A, B) in leaves.items():
            layer, role = name.split(".")
            module = wrapped.base_model.model.model.layers[int(layer)].get_submodule(lora.ROLES[role])
            module.lora_A["default"].weight.data.copy_(A[index])
            module.lora_B["default"].weight.data.copy_(B[index])
        with torch.no_grad():
            torch.testing.assert_close(rows, wrapped(input_ids=ids[index]).logits, atol=1e-5, rtol=1e-5)


def base_copy(model):
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_right_is_what_the_model_itself_would_answer(model):
    ids = examples(EVERY[:4], inputs(0)[1][:8]).flatten(0, 1)
    said = ids[:, :PROMPT]
    with torch.no_grad():
        for _ in range(ids.shape[1] - PROMPT):
            said = torch.cat([said, model(input_ids=said).logits[:, -1:].argmax(-1)], 1)
    assert right(model, said).all()
    said[::2, -1] += 1
    assert right(model, said).tolist() == [False, True] * (len(said) // 2)


def test_exchanges_of_all_pairs_can_be_told_apart():
    pairs = [task for task in EVERY if isinstance(task, Exchange)]
    assert len({describe(task, 3) for task in pairs}) == len(list(combinations(range(4), 2)))
