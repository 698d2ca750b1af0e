"""Adapters on quantised bases, with peft on the same base as the judge.

bitsandbytes and torchao are no part of the tests' requirements: `make test-quantised` installs them.
"""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.attached import VARIANTS, logits, saved
from tests.helpers.families import tiny_config
from tests.helpers.training import steps

TOLERANCE = 1e-5
TARGETS = ["q_proj", "k_proj", "down_proj"]


def bitsandbytes(**keys):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**keys)


def torchao():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


KINDS = {
    "8bit": lambda: bitsandbytes(load_in_8bit=True),
    "fp4": lambda: bitsandbytes(load_in_4bit=True),
    "nf4": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "torchao": torchao,
}


def plain():
    """A llama of the sizes that 4-bit kernels want, no two alike."""
    torch.manual_seed(0)
    config = tiny_config("llama")
    config.update({"hidden_size": 192, "intermediate_size": 320, "head_dim": 64})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    plain().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """An adapter of every variant, with random numbers."""
    folder, model = tmp_path_factory.mktemp("adapters"), plain()
    for seed, (name, options) in enumerate(VARIANTS.items()):
        saved(model, folder / name, seed=seed, rank=2 + seed, target_modules=TARGETS, **options)
    return folder


@pytest.fixture(params=KINDS)
def load(request, base):
    """Loads the base quantised."""
    config = KINDS[request.param]()

    def loaded():
        return AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu").eval()

    return loaded


def inputs_and_outputs(model):
    """What every adapted module of a peft model was given last and what it answered, by the base's own name."""
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.__setitem__(name, (args[0], output))

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.register_forward_hook(keep(name))
    answer = logits(model)
    return answer, seen


def test_adapters_act_on_a_quantised_base_as_under_peft(load, adapters, request):
    """Module by module: these kernels round what they are given, so that differences of the last bit grow."""
    model = load()
    quantised = logits(model)
    assert not torch.equal(quantised, logits(plain()))
    names = ["lora", "rslora"] if "torchao" in request.node.name else ["lora", "rslora", "bias"]  # as far as peft does
    with attach(model, {name: adapters / name for name in names}) as session:
        for name in names:
            wanted, seen = inputs_and_outputs(peft.PeftModel.from_pretrained(load(), adapters / name).eval())
            assert len(seen) == 9
            with session.use(name), torch.no_grad():
                assert (logits(model) - wanted).abs().max() < 0.1 * (wanted - quantised).abs().max()
                for path, (given, answer) in seen.items():
                    assert (model.get_submodule(path)(given) - answer).abs().max() < TOLERANCE
            with session.route([None, name, None]), torch.no_grad():
                for path, (given, answer) in seen.items():
                    assert (model.get_submodule(path)(given)[1] - answer[1]).abs().max() < TOLERANCE
    assert torch.equal(logits(model), quantised)


def test_training_on_a_quantised_base_is_that_of_peft(load, adapters):
    model = load()
    theirs = peft.PeftModel.from_pretrained(load(), adapters / "lora", is_trainable=True)
    wanted = steps(theirs, [p for p in theirs.parameters() if p.requires_grad], count=3)
    with attach(model, {"x": adapters / "lora"}) as session:
        leaves = session.parameters("x")
        session.activate("x")
        assert steps(model, leaves, count=3) == pytest.approx(wanted, abs=TOLERANCE)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        steps(model, leaves, count=1)


def test_dora_on_a_quantised_base_is_refused_by_name(load, adapters):
    with pytest.raises(RefusedError) as caught:
        attach(load(), {"x": adapters / "dora"})
    assert {problem.code for problem in caught.value.problems} == {"quantised"}
    assert "q_proj" in str(caught.value)
