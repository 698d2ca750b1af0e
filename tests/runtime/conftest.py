"""What tests of the runtime share."""

import pytest

from tests.helpers.double import double


@pytest.fixture
def in_double():
    """A test whose models are in double, and all that is computed in them."""
    with double():
        yield
