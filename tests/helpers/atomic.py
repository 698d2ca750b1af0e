"""Outputs to make."""

import os
from pathlib import Path

import pytest

from adaptrix.atomic import output
from adaptrix.errors import AdaptrixError

HOLDS = ("adapter_config.json", "adapter_model.safetensors")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def put(path: Path, text: str = "new", *, force: bool = False) -> None:
    with output(path, force=force) as work:
        work.write_text(text)


def put_folder(path: Path, *, force: bool = False, config: str = "new") -> None:
    with output(path, force=force, holds=HOLDS) as work:
        work.mkdir()
        (work / "adapter_config.json").write_text(config)
        (work / "adapter_model.safetensors").write_bytes(b"x")


def error_code(error: "pytest.ExceptionInfo[AdaptrixError]") -> str:
    return error.value.problems[0].code
