"""What tests of the runtime share."""

from types import SimpleNamespace

import pytest

from tests.helpers.double import double


@pytest.fixture
def in_double():
    """A test whose models are in double, and all that is computed in them."""
    with double():
        yield


@pytest.fixture
def uncollected(monkeypatch):
    """A test of Trainers, each of which collects garbage: that takes ten times as long as all the rest of it."""
    monkeypatch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: None))
