"""One adapter trained by several processes, with one process and batches of the same rows as the judge."""

import os
import subprocess
import sys

import pytest
import torch

from adaptrix.attaching import attach
from tests.docs.pages import ROOT
from tests.helpers.attached import saved
from tests.helpers.double import EXACT
from tests.helpers.families import tiny_model

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from transformers import Trainer
from adaptrix.attaching import attach
from tests.helpers.double import double
from tests.helpers.families import tiny_model
from tests.helpers.trainer import arguments, rows

folder, count = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
with double():
    with attach(tiny_model("llama").double(), {"x": folder / "lora"}) as session:
        with session.training("x") as module:
            options = arguments(folder / f"runs{count}", per_device_train_batch_size=4 // count, save_strategy="steps")
            Trainer(module, options, train_dataset=rows()).train()
        if os.environ["RANK"] == "0":
            leaves = session.named_parameters("x").items()
            torch.save({name: leaf.detach() for name, leaf in leaves}, folder / f"{count}.pt")
"""
FSDP = """
import os, sys
from pathlib import Path
import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from adaptrix.attaching import attach
from tests.helpers.families import tiny_model

torch.distributed.init_process_group("gloo")
with attach(tiny_model("llama"), {"x": Path(sys.argv[1]) / "lora"}) as session, session.training("x") as module:
    module = FullyShardedDataParallel(module, device_id=torch.device("cpu"))
    module(input_ids=torch.tensor([[1, 2]]))
"""


def launch(script, folder, count):
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, folder / "train.py", folder], env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path):
    saved(tiny_model("llama").double(), tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    return tmp_path


def test_two_processes_end_with_the_numbers_of_one(folder):
    for count in (1, 2):
        done = launch(SCRIPT, folder, count)
        assert done.returncode == 0, done.stderr
    wanted, found = (torch.load(folder / f"{count}.pt") for count in (1, 2))
    with attach(tiny_model("llama").double(), {"x": folder / "lora"}) as session:
        before = session.named_parameters("x")
    for name, number in wanted.items():
        assert (found[name] - number).abs().max() < EXACT, name
        assert not torch.equal(number, before[name]), name
    assert (folder / "runs2" / "checkpoint-3" / "adapter_model.safetensors").exists()


def test_slices_of_leaves_are_refused(folder):
    done = launch(FSDP, folder, 1)
    assert done.returncode != 0
    assert "its parameters were replaced" in done.stderr
