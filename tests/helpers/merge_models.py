"""Bases and adapters to merge, saved by transformers and peft, and peft's own answer."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers.pytorch_utils import Conv1D

from adaptrix.formats import safetensors_file
from adaptrix.merging.draft import draft
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions, prepare
from adaptrix.pipeline import Pipeline
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import trained


@dataclass(frozen=True)
class Pair:
    """A saved base, a saved adapter, and the model that peft made of both."""

    base: Path
    adapter: Path
    model: object

    def merge(self, out, **options):
        return merge(self.adapter, self.base, out, **options)

    def peft_merged(self):
        """The state of peft's own merge, each tensor by its name in the checkpoint."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(self.model).merge_and_unload().state_dict()


def merge(source, base, out, **options):
    wanted = MergeOptions(**options)
    prepare(str(out), wanted)
    return write(draft(Pipeline(), str(source), str(base), wanted), str(out), wanted)


def pair(folder, family="llama", *, dtype=torch.float32, shard="2GB", build=None, targets=None, variant=0, **keys):
    """An adapter with random numbers everywhere on a tiny base, both saved."""
    model = (build() if build else tiny_model(family, variant=variant)).to(dtype)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    names = targets or sorted(
        {
            path.rpartition(".")[2]
            for path, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings()
        }
    )
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 7, "target_modules": names} | keys))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = trained(peft.get_peft_model(copy.deepcopy(model), config)).eval()
        adapted.save_pretrained(folder / "adapter")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder / "adapter").eval()
    return Pair(folder / "base", folder / "adapter", loaded)


def tensors(folder):
    """Every tensor of a folder, in memory, by name."""
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= safetensors_file.read(file)[0]
    return found


def as_torch(tensor):
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F64": torch.float64}
    return torch.frombuffer(bytearray(tensor.tobytes()), dtype=kinds[tensor.dtype]).reshape(tensor.shape)


def loaded(folder, like):
    """The state of a merged model as transformers loads it."""
    model, info = type(like).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def assert_equal_bits(folder, made):
    """Every tensor of the merged model, as transformers loads it, has the bits that peft's has."""
    wanted = made.peft_merged()
    found = loaded(folder, made.model.get_base_model()).state_dict()
    assert found.keys() == wanted.keys()
    unlike = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert unlike == []
