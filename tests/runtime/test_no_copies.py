"""A model with a session, and the session itself, are neither pickled nor copied, and say so."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.attached import logits, saved
from tests.helpers.families import tiny_model


def spawned(thing):
    multiprocessing.get_context("spawn").Process(target=print, args=(thing,)).start()


WAYS = {
    "pickle": pickle.dumps,
    "torch.save": lambda thing: torch.save(thing, io.BytesIO()),
    "deepcopy": copy.deepcopy,
    "spawn": spawned,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    saved(tiny_model("llama"), folder / "a", target_modules=["q_proj"])
    return folder / "a"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"slots": 1}], ids=["plain", "slots"])
def test_what_has_a_session_is_refused_in_a_sentence(folder, way, options):
    model = tiny_model("llama").eval()
    with attach(model, {"a": folder}, **options) as session:
        session.new_cache()
        for thing in (model, session, model.model.layers[0], model.model.layers[0].self_attn.q_proj):
            with pytest.raises(RefusedError, match="neither be copied nor pickled") as refused:
                WAYS[way](thing)
            assert {problem.code for problem in refused.value.problems} == {"session-state"}
        with session.use("a"):
            assert logits(model).isfinite().all()
        assert pickle.loads(pickle.dumps(model.state_dict())).keys() == model.state_dict().keys()
    if way != "spawn":
        WAYS[way](model)
