"""What a session says to Python's logging: nothing by default, every change of state to those who listen."""

import logging

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.runtime.logs import LOG
from tests.helpers.attached import logits, saved
from tests.helpers.families import tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama")
    for seed, name in enumerate("ab"):
        saved(base, folder / name, seed=seed, target_modules=["q_proj"])
    return {name: folder / name for name in "ab"}


def everything(folders):
    """A session that does all there is to be logged."""
    model = tiny_model("llama").eval()
    ids = torch.tensor([[1, 2, 3]])
    with attach(model, folders) as session, torch.no_grad():
        cache = session.new_cache()
        with session.use("a"):
            model(ids, past_key_values=cache)
        session.swap("b", cache)
        session.activate({"a": 0.5})
        with session.route(["a"]):
            logits(model, input_ids=ids)
        session.generate("a", ids, max_new_tokens=1, pad_token_id=0)
        session.activate(None)
        session.unload("a")
    with attach(model, folders, slots=1) as session:
        for name in "ab":
            with session.use(name):
                logits(model, input_ids=ids)


def test_every_change_of_state_is_logged(folders, caplog):
    with caplog.at_level(logging.DEBUG, logger="adaptrix"):
        everything(folders)
    said = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    info = ["load", "load", "swap", "activate", "activate", "unload", "detach", "load", "load", "detach"]
    assert [word for level, word in said if level == "INFO"] == info
    debug = ["use", "route", "generate", "page", "use", "page", "page", "use"]
    assert [word for level, word in said if level == "DEBUG"] == debug
    assert all(record.name.startswith("adaptrix") for record in caplog.records)
    assert any("layers kept" in record.getMessage() for record in caplog.records)


def test_nothing_is_said_unasked(folders, capfd):
    everything(folders)
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("adaptrix").handlers)


def test_a_pass_logs_nothing(folders, caplog):
    """A server makes thousands of passes a second."""
    model = tiny_model("llama").eval()
    with attach(model, folders) as session, session.use("a"), caplog.at_level(logging.DEBUG, logger="adaptrix"):
        caplog.clear()
        logits(model)
        assert [record.getMessage().split()[0] for record in caplog.records if record.name == LOG.name] == []
