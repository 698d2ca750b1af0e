"""Whatever is done to a checkpoint, ``adaptrix convert`` writes what can be read back, or says what is wrong.

Real files are damaged, a thing or a few at a time, and go through the whole command line. What was found
stands at the end, by name.
"""

import contextlib
import io
import json
import os
import random
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix import cli
from adaptrix.formats import safetensors_file
from benchmarks.checkpoints import GOOD
from benchmarks.draft import (
    BIN,
    INJECTION,
    PREFIX,
    Q0,
    WEIGHTS,
    header_of,
    injection,
    manifest,
    packed,
    torch_bytes,
    with_header,
)
from tests.helpers import mutations
from tests.helpers.command_line import ending, offline
from tests.helpers.json_documents import document
from tests.helpers.odd_json import changed

SEEDS = ["plain", "DoRA", "rank and alpha patterns", "modules_to_save", "embeddings", "bias all, on Conv1D", "bf16"]
OPTIONS = {
    "--layers": ["all", "middle", "spread:1", "energy:1", "0", "1"],
    "--redistribute": ["nearest"],
    "--rank": ["1", "5"],
    "--dtype": ["F16", "BF16", "F64"],
    "--to": ["peft"],
    "--prune": [],
    "--allow-nonfinite": [],
    "--json": [],
}
FEW = st.sampled_from([1, 1, 1, 2, 3])
SELDOM = st.sampled_from([False] * 7 + [True])


def change_config(made, draw):
    made.config = changed(made.config, draw)


def change_base(made, draw):
    made.base = changed(made.base, draw)


def change_header(made, draw):
    header, data = header_of(packed(made.tensors))
    made.instead(WEIGHTS, with_header(json.dumps(changed(header, draw)).encode(), data))


def change_names(made, draw):
    name = draw(st.sampled_from(sorted(made.tensors)))
    steps = name.split(".")
    at = draw(st.integers(0, len(steps) - 1))
    odd = draw(st.sampled_from(["", "0", "00", "7", "999999", "1000000", "lora_A", "lora_B", "base_layer", "é"]))
    steps[at : at + draw(st.integers(0, 1))] = [odd]
    made.tensors[".".join(steps)] = made.tensors.pop(name) if draw(st.booleans()) else made.tensors[name]


def change_tensor(made, draw):
    name = draw(st.sampled_from(sorted(made.tensors)))
    tensor = made.tensors[name]
    ways = [
        lambda: tensor.T,
        lambda: tensor[..., :0],
        lambda: tensor[:1],
        lambda: tensor[None],
        lambda: tensor.reshape(-1),
        lambda: tensor * np.nan,
        lambda: tensor.astype(np.float64) * 1e300,
        lambda: tensor.astype(np.int8),
        lambda: tensor * 0,
        lambda: np.concatenate([tensor, tensor]),
    ]
    with np.errstate(over="ignore"):
        made.tensors[name] = np.ascontiguousarray(draw(st.sampled_from(ways))())


def change_bytes(made, draw):
    made.instead(WEIGHTS, damaged(packed(made.tensors), draw))


def change_archive(made, draw):
    """The same of a .bin; the tensors of this one are fp32 matrices."""
    made.tensors = GOOD["plain"].draft().tensors
    made.instead(BIN, damaged(torch_bytes(made.tensors), draw))


def damaged(data, draw):
    chance = random.Random(draw(st.integers(0, 1 << 30)))
    return chance.choice(mutations.BLIND)(data, chance)


CHANGES = [change_config, change_base, change_header, change_names, change_tensor, change_bytes, change_archive]


def command_line(draw):
    """Some options, each with a value it may have."""
    words = []
    for option in draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4)):
        values = OPTIONS[option]
        words += [option, draw(st.sampled_from(values))] if values else [option]
    return words


def convert(folder, source, words):
    """Runs one conversion in a folder of its own and holds it to the promise; the exit code."""
    out = folder / "out"
    out.mkdir()
    before = sorted(folder.rglob("*"))
    said, errors = io.StringIO(), io.StringIO()
    with (
        ending(),
        contextlib.chdir(out),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        code = cli.run(["convert", str(source), "-o", "x", *words])
    text = said.getvalue() + errors.getvalue()
    assert "Traceback" not in text
    assert code in (0, 1, 2), text
    if currently_in_test_context():
        event(f"exit {code}")
    if "--json" in words:
        document(said.getvalue(), code)
    if code:
        assert sorted(folder.rglob("*")) == before, "something was left behind"
        assert text.strip()
    else:
        assert os.listdir(out) == ["x"]
        read_back(out, "peft" in words)
    return code


def read_back(out, is_folder):
    """What was written is sound, and a manifest is JSON as everybody reads it."""
    if is_folder:
        assert adaptrix.load(out / "x").deltas
        return
    file = (out / "x").rename(out / INJECTION)
    assert adaptrix.load(file).deltas
    json.loads(safetensors_file.read(file)[1]["adaptrix"], parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    offline(monkeypatch)
    monkeypatch.setenv("ADAPTRIX_TRACEBACK", "1")  # what is no refusal is raised


@contextlib.contextmanager
def emptied(folder):
    """The folder, empty before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def one_checkpoint(home, data):
    made = GOOD[data.draw(st.sampled_from(SEEDS))].draft()
    for _ in range(data.draw(FEW)):
        data.draw(st.sampled_from(CHANGES))(made, data.draw)
    words = command_line(data.draw)
    words += ["--base", str(home / "x/base")] if data.draw(st.booleans()) else []
    with emptied(home / "x") as folder:
        made.write(folder)
        convert(folder, folder / "adapter", words)


def one_injection_file(home, data):
    made = GOOD["plain"].draft()
    if data.draw(SELDOM):
        change_tensor(made, data.draw)
    described = manifest(made)
    for _ in range(data.draw(FEW)):
        described = changed(described, data.draw)
    injection(made, json.dumps(described))
    if data.draw(SELDOM):
        made.files[INJECTION] = damaged(made.files[INJECTION], data.draw)
    with emptied(home / "x") as folder:
        made.write(folder)
        convert(folder, folder / INJECTION, command_line(data.draw))


ANY = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=200, **ANY)
@given(data=st.data())
def test_a_damaged_checkpoint(home, data):
    one_checkpoint(home, data)


@settings(max_examples=200, **ANY)
@given(data=st.data())
def test_a_damaged_injection_file(home, data):
    one_injection_file(home, data)


@pytest.mark.slow
@settings(max_examples=10_000, **ANY)
@given(data=st.data())
def test_many_damaged_checkpoints(home, data):
    one_checkpoint(home, data)


@pytest.mark.slow
@settings(max_examples=5_000, **ANY)
@given(data=st.data())
def test_many_damaged_injection_files(home, data):
    one_injection_file(home, data)


# -- what was found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("words", [["--rank", "1"], ["--redistribute", "nearest", "--layers", "0"]])
def test_what_is_not_finite_cannot_be_recompressed(home, number, words):
    """The SVD raised LinAlgError, and a fold wrote NaN."""
    made = GOOD["plain"].draft()
    made.tensors = {name: tensor.astype(np.float64) for name, tensor in made.tensors.items()}
    made.tensors[f"{PREFIX}{Q0}.lora_B.weight"][:] = number
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / "adapter", ["--allow-nonfinite", *words]) == 1


def test_a_fold_that_leaves_the_range_of_the_dtype(home):
    """It wrote Inf."""
    made = GOOD["plain"].draft()
    made.tensors = {name: tensor * 1e5 for name, tensor in made.tensors.items()}
    made.config["lora_alpha"] = 1e6
    made.cast(np.float16)
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / "adapter", ["--redistribute", "nearest", "--layers", "0"]) == 1


@pytest.mark.parametrize("number", [1e77, 1e100])
def test_norms_that_cannot_be_added_up(home, number):
    """math.fsum raises OverflowError where each number is finite and their sum is not."""
    made = GOOD["plain"].draft()
    made.tensors = {name: np.full(tensor.shape, number) for name, tensor in made.tensors.items()}
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / "adapter", []) == 0


def test_a_base_whose_products_are_too_long_to_print(home):
    """An int of more than 4,300 digits has no str()."""
    made = GOOD["plain"].draft()
    made.base |= {"num_attention_heads": 10**4000, "head_dim": 10**4000}
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / "adapter", ["--base", str(folder / "base")]) == 1


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "x" * 5000, 7, ["llama"]])
def test_a_base_whose_name_cannot_be_written(home, name):
    """The injection file was written, and refused when it was read."""
    made = GOOD["plain"].draft()
    made.config["base_model_name_or_path"] = name
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / "adapter", []) == 1


def test_a_policy_too_long_to_be_written(home):
    with emptied(home / "x") as folder:
        GOOD["plain"].write(folder)
        assert convert(folder, folder / "adapter", ["--layers", ",".join(["0,1"] * 2000)]) == 2


def test_a_manifest_whose_config_contradicts_its_deltas(home):
    """The folder was written with the r of the config, and refused when it was read."""
    made = GOOD["plain"].draft()
    described = manifest(made)
    del described["source"]["config"]["r"]
    injection(made, json.dumps(described))
    with emptied(home / "x") as folder:
        made.write(folder)
        assert convert(folder, folder / INJECTION, ["--to", "peft"]) == 1
        shutil.rmtree(folder / "out")
        assert convert(folder, folder / INJECTION, []) == 0
