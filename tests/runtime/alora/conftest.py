"""A tiny base, and activated LoRAs on it."""

import pytest

import adaptrix
from tests.helpers.alora import adapter, tiny


@pytest.fixture(scope="module")
def base():
    return tiny()


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """The folder of an activated LoRA, and peft's model with it."""
    folder = tmp_path_factory.mktemp("alora") / "a"
    return folder, adapter(base, folder)


@pytest.fixture
def session(base, made):
    with adaptrix.attach(base, {"a": made[0]}) as session:
        yield session


@pytest.fixture
def several(base, made, tmp_path):
    """A session of two activated LoRAs, "a" and "other", and of one for all tokens, "plain"."""
    adapter(base, tmp_path / "other", seed=2, tokens=[9, 10])
    adapter(base, tmp_path / "plain", seed=3, tokens=None)
    with adaptrix.attach(base, {"a": made[0], "other": tmp_path / "other", "plain": tmp_path / "plain"}) as session:
        yield session
