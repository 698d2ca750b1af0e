"""Damaged files are read truly or refused, quickly; torch and safetensors are the judges of "truly".

``ADAPTRIX_FUZZ`` sets how many files are tried in each test, ``ADAPTRIX_FUZZ_SEED`` where to begin. A file
that fails is written to the temporary folder whose path the failure shows; its lesson belongs in
``test_torch_file.py`` or ``test_safetensors_file.py``, or among the cases at the end of this file.
"""

import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file, torch_file
from adaptrix.tensor import Tensor
from tests.helpers import mutations
from tests.helpers.torch_files import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

Reader = Callable[[Path], dict[str, Tensor]]
Judge = Callable[[Path, dict[str, Tensor]], None]

COUNT = int(os.environ.get("ADAPTRIX_FUZZ", "0"))
SEED = int(os.environ.get("ADAPTRIX_FUZZ_SEED", "0"))
MANY = 60_000
SECONDS = 3.0  # for one file of a few kB: hundreds of times what it takes


def torch_seeds() -> list[bytes]:
    base = torch.arange(24.0).reshape(4, 6)
    varied = {
        "a.weight": base,
        "b": base[1:3],
        "c": base.t(),
        "d": torch.ones(3).bfloat16(),
        "e": torch.nn.Parameter(torch.ones(2)),
        "f": torch.ones(3).to(torch.float8_e4m3fn),
        "g": torch.tensor([True, False]),
        "h": torch.empty(0, 3),
        "i": torch.tensor(1),
        "j": torch.nn.Buffer(torch.ones(1)),
    }
    values = [varied, torch.nn.Linear(2, 3).state_dict(), {"w": torch.ones(2)}]
    seeds = []
    for number, value in enumerate(values):
        target = io.BytesIO()
        torch.save(value, target, pickle_protocol=4 if number == 2 else 2)
        seeds.append(target.getvalue())
    return seeds


def safetensors_seeds() -> list[bytes]:
    small = {"a": torch.ones(2, 3), "b.weight": torch.ones(4).bfloat16(), "c": torch.empty(0, 2), "d": torch.tensor(7)}
    return [safetensors.torch.save(small, {"format": "pt"}), safetensors.torch.save({"w": torch.ones(1)})]


def judged_by_torch(path: Path, ours: dict[str, Tensor]) -> None:
    try:
        theirs = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # torch may refuse what we read, with whatever it likes
        return
    theirs = theirs["state_dict"] if list(theirs) == ["state_dict"] else theirs
    assert_same(ours, theirs)


def judged_by_safetensors(path: Path, ours: dict[str, Tensor]) -> None:
    with safetensors.safe_open(path, "pt") as file:  # whatever it refuses, we refuse
        assert_same(ours, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def attempt(read: Reader, path: Path) -> dict[str, Tensor] | RefusedError:
    try:
        return read(path)
    except RefusedError as error:
        return error


def attack(
    folder: Path,
    seeds: list[bytes],
    ways: list[mutations.Mutation],
    read: Reader,
    judge: Judge,
    count: int,
) -> None:
    accepted = 0
    for number in range(SEED, SEED + count):
        rng = random.Random(number)
        content = rng.choice(ways)(rng.choice(seeds), rng)
        if content and rng.random() < 0.2:
            content = rng.choice(mutations.BLIND)(content, rng)
        path = folder / f"{number}.bin"
        path.write_bytes(content)
        start = time.perf_counter()
        result = attempt(read, path)
        assert time.perf_counter() - start < SECONDS
        if isinstance(result, RefusedError):
            assert all(problem.code and problem.where and problem.found for problem in result.problems)
            assert all(str(problem).isprintable() for problem in result.problems)
        else:
            judge(path, result)
            accepted += 1
        path.unlink()
    assert accepted < count


def fuzz_torch(folder: Path, count: int) -> None:
    attack(folder, torch_seeds(), mutations.TORCH, torch_file.read, judged_by_torch, count)


def fuzz_safetensors(folder: Path, count: int) -> None:
    def read(path: Path) -> dict[str, Tensor]:
        return safetensors_file.read(path)[0]

    attack(folder, safetensors_seeds(), mutations.SAFETENSORS, read, judged_by_safetensors, count)


def test_damaged_torch_files(tmp_path: Path) -> None:
    fuzz_torch(tmp_path, COUNT or 3000)


def test_damaged_safetensors_files(tmp_path: Path) -> None:
    fuzz_safetensors(tmp_path, COUNT or 3000)


@pytest.mark.slow
def test_many_damaged_torch_files(tmp_path: Path) -> None:
    fuzz_torch(tmp_path, COUNT or MANY)


@pytest.mark.slow
def test_many_damaged_safetensors_files(tmp_path: Path) -> None:
    fuzz_safetensors(tmp_path, COUNT or MANY)
