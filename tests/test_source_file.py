"""Files that change while they are read: what was checked and hashed is what is used, or nothing is."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import adaptrix
from adaptrix import RefusedError
from adaptrix.formats import safetensors_file, torch_file
from adaptrix.merging import shards
from adaptrix.merging.reading import reading
from adaptrix.records import Bundle
from adaptrix.source_file import MOST_OPEN, SourceFile, source_file
from adaptrix.tensor import FileRange, Tensor

TINY = Path(__file__).parents[1] / "examples" / "tiny"
BASE = str(TINY / "base")


@pytest.fixture
def lora(tmp_path):
    return Path(shutil.copytree(TINY / "adapters" / "pirate", tmp_path / "lora"))


def overwrite(path: Path) -> None:
    """NaN in the place of the last bytes, in the same file, of the same size."""
    with open(path, "r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(b"\xff" * 4000)


def overwrite_and_hide(path: Path) -> None:
    """The same, with the time of modification set back."""
    times = os.stat(path)
    overwrite(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 5000)


def replace(path: Path) -> None:
    """Another file of this name, as programs write that mean well."""
    data = bytearray(path.read_bytes())
    data[-4000:] = b"\xff" * 4000
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").rename(path)


CONVERSIONS = {
    "convert": lambda lora, out: adaptrix.convert(lora, out, base=BASE),
    "convert to peft": lambda lora, out: adaptrix.convert(lora, out, base=BASE, to="peft"),
    "combine": lambda lora, out: adaptrix.combine([lora, TINY / "adapters" / "telegram"], None, out, base=BASE),
    "resize": lambda lora, out: adaptrix.resize(lora, 2, out, base=BASE),
    "merge": lambda lora, out: adaptrix.merge(lora, BASE, out),
}


@pytest.fixture
def meanwhile(monkeypatch):
    """Lets something happen to a file right before the first byte of an output is written."""

    def happens(change, path):
        waiting = [change]

        def late(real, *args):
            if waiting:
                waiting.pop()(path)
            return real(*args)

        for module, name in ((safetensors_file, "write"), (shards, "write_shard")):
            monkeypatch.setattr(module, name, partial(late, getattr(module, name)))

    return happens


@pytest.mark.parametrize("change", [overwrite, overwrite_and_hide, truncate])
@pytest.mark.parametrize("how", CONVERSIONS)
def test_an_adapter_written_in_place_meanwhile_is_refused(how, change, lora, tmp_path, meanwhile):
    meanwhile(change, lora / "adapter_model.safetensors")
    with pytest.raises(RefusedError, match="the file changed while it was read") as caught:
        CONVERSIONS[how](lora, tmp_path / "out")
    assert caught.value.problems[0].code == "file-changed"
    assert os.listdir(tmp_path) == ["lora"]
    CONVERSIONS[how](TINY / "adapters" / "pirate", tmp_path / "out")  # nothing of the refusal stays behind


@pytest.mark.parametrize("how", CONVERSIONS)
def test_an_adapter_replaced_meanwhile_is_the_one_that_was_opened(how, lora, tmp_path, meanwhile):
    meanwhile(replace, lora / "adapter_model.safetensors")
    CONVERSIONS[how](lora, tmp_path / "out")
    shutil.copytree(TINY / "adapters" / "pirate", tmp_path / "again" / "lora")
    CONVERSIONS[how](tmp_path / "again" / "lora", tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor.tobytes() for file in files for name, tensor in safetensors_file.read(file)[0].items()}


@pytest.mark.parametrize("change", [overwrite, truncate])
def test_a_base_written_in_place_under_a_merge_is_refused(change, tmp_path, meanwhile):
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    meanwhile(change, base / "model.safetensors")
    with pytest.raises(RefusedError, match="the file changed while it was read"):
        adaptrix.merge(TINY / "adapters" / "pirate", base, tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_the_digest_recorded_is_that_of_the_bytes_that_were_read(lora, tmp_path):
    old = (lora / "adapter_model.safetensors").read_bytes()
    bundle = Bundle(str(lora), "lora", {"adapter_model.safetensors": lora / "adapter_model.safetensors"})
    with bundle.held():
        replace(lora / "adapter_model.safetensors")
        tensors, _ = safetensors_file.read(bundle.files["adapter_model.safetensors"])
    assert not any(tensor.nonfinite() for tensor in tensors.values())
    assert bundle.sha256["adapter_model.safetensors"] == sha256(old).hexdigest()
    bundle.require_unchanged()
    new, _ = safetensors_file.read(lora / "adapter_model.safetensors")
    assert any(tensor.nonfinite() for tensor in new.values())


def test_torch_files_are_read_from_the_file_that_was_checked(tmp_path):
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.arange(5000.0)}, path)
    tensor = torch_file.read(path)["a"]
    replace(path)
    assert tensor.numpy()[-1] == 4999
    torch.save({"a": torch.arange(5000.0)}, path)
    tensor = torch_file.read(path)["a"]
    time.sleep(0.02)  # a time of modification of its own
    overwrite(path)
    with pytest.raises(RefusedError, match="changed"):
        tensor.numpy()


def test_rows_of_a_file_that_is_cut_off_meanwhile_are_a_refusal_and_no_signal(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(bytes(64 * 64 * 2))
    with pytest.raises(RefusedError, match="changed"):
        cut_off(path, Tensor("BF16", (64, 64), FileRange(path, 0, 8192)))


def cut_off(path: Path, tensor: Tensor) -> None:
    with reading(tensor, 8, torch.float32) as read:
        assert read(0, 8).shape == (8, 64)
        os.truncate(path, 100)
        read(8, 16)


def test_of_many_files_few_stay_open_and_all_can_be_read(tmp_path):
    files = []
    for number in range(3 * MOST_OPEN):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        files.append(SourceFile(tmp_path / str(number)))
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and link(fd)]
    assert sum(str(tmp_path) in name for name in opened) <= MOST_OPEN
    assert [next(file.chunks(0, 1))[0] for file in files] == list(range(3 * MOST_OPEN))
    overwritten = tmp_path / "0"
    overwritten.write_bytes(b"xyz")
    with pytest.raises(RefusedError, match="it had 1 bytes and has 3"):
        next(files[0].chunks(0, 1))


def link(descriptor: str) -> bool:
    try:
        return bool(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return False


def test_a_file_is_closed_when_nothing_reads_it_any_more(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    before = len(os.listdir("/proc/self/fd"))
    file = source_file(tmp_path / "a")
    assert next(pickle.loads(pickle.dumps(file)).chunks(0, 1)) == b"a"
    assert len(os.listdir("/proc/self/fd")) > before
    del file
    assert len(os.listdir("/proc/self/fd")) == before


MERGE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import adaptrix
adaptrix.merge(*sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_NOFILE"), reason="no such limit here")
def test_a_base_of_more_shards_than_files_may_be_open(tmp_path):
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    tensors, metadata = safetensors_file.read(base / "model.safetensors")
    names = [f"model-{number + 1:05d}-of-{len(tensors):05d}.safetensors" for number in range(len(tensors))]
    for name, (key, tensor) in zip(names, tensors.items(), strict=True):
        rows = tensor.shape[0]
        safetensors_file.write(base / name, {key: tensor.rows(0, rows)}, metadata)
    index = {"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    command = [sys.executable, "-c", MERGE, str(TINY / "adapters" / "pirate"), str(base), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(tensors)


@pytest.mark.parametrize("touch", [
    lambda path: path.chmod(0o600),
    lambda path: os.link(path, path.with_suffix(".other")),
    lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns)),
    lambda path: path.rename(path.with_suffix(".away")).rename(path),
], ids=["chmod", "link", "touch -a", "away and back"])  # fmt: skip
def test_a_file_that_was_touched_between_two_uses_is_opened_anew(lora, touch):
    path = lora / "adapter_model.safetensors"
    first = source_file(path)
    time.sleep(0.05)
    touch(path)
    assert source_file(path).first_sha256() == first.sha256() == sha256(path.read_bytes()).hexdigest()


def test_an_interrupt_of_a_merge_stays_one_where_the_adapter_changed(lora, tmp_path, monkeypatch):
    def interrupted(*_):
        overwrite(lora / "adapter_model.safetensors")
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptrix.merging.merger.write_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaptrix.merge(lora, BASE, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
