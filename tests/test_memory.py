"""Work that there is no memory for ends in one line and leaves nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaptrix import RefusedError
from adaptrix.memory import enough_memory

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny"


def sparse(folder: Path, columns: int) -> Path:
    """A LoRA of holes: A and B of [8, columns] and [64, 8] in fp32, which take no room on the disk."""
    folder.mkdir()
    header, position = {}, 0
    for name, shape in (("lora_A", [8, columns]), ("lora_B", [64, 8])):
        end = position + 4 * shape[0] * shape[1]
        key = f"base_model.model.model.layers.0.self_attn.q_proj.{name}.weight"
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


LIMITED = """
import resource, sys
import numpy.linalg  # OpenBLAS ends the process itself where it finds no memory for its buffers
numpy.ones((8, 8)) @ numpy.ones((8, 8))
from adaptrix.cli import run
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[1]),) * 2)
sys.exit(run(sys.argv[2:]))
"""


def limited(nbytes: int, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(nbytes), *map(str, args)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set above what the process has")
@pytest.mark.parametrize("command", ["convert", "combine", "resize"])
def test_a_tensor_larger_than_memory_is_one_line(command, tmp_path):
    source = sparse(tmp_path / "lora", 6_000_000)  # 192 MB
    operands = {"combine": [source, TINY / "adapters" / "pirate"], "resize": [source, "--rank", "2"]}
    done = limited(150 << 20, command, *operands.get(command, [source]), "-o", tmp_path / "out")
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "not enough memory" in done.stderr
    assert os.listdir(tmp_path) == ["lora"]


def raising(error: BaseException) -> None:
    with enough_memory("it"):
        raise error


def test_only_want_of_memory_is_one():
    torchs = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    for error in (
        MemoryError(),
        RuntimeError(torchs),
        ImportError("libx.so: failed to map segment from shared object"),
    ):
        with pytest.raises(RefusedError, match="not enough memory"):
            raising(error)
    for other in (RuntimeError("shapes differ"), ValueError("out of memory")):
        with pytest.raises(type(other)):
            raising(other)
