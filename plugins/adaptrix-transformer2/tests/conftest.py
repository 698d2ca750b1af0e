"""A base on the disk, taken apart in a cache of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrix_transformer2 import Decomposition, decomposed

from tests.helpers.families import tiny_model


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no cache but the test's own."""
    torch.set_num_threads(1)
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama() -> Any:
    """A Llama with random weights: 3 layers, grouped heads, no square MLP."""
    return tiny_model("llama")


@pytest.fixture
def parts(llama: Any) -> Decomposition:
    """The Llama, taken apart."""
    return decomposed(llama)
