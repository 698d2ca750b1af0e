"""Models that accelerate has spread or offloaded, and models that are moved or cast under a session.

All of it on the one device that is always there; "meta" stands in for another.
"""

import copy

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptrix.attaching import attach
from adaptrix.base.svd import SvdCache
from adaptrix.errors import RefusedError
from tests.helpers.attached import VARIANTS, hook_count, inputs, logits, saved
from tests.helpers.double import EXACT
from tests.helpers.families import tiny_model
from tests.helpers.sampling import crossed
from tests.helpers.spectral_experts import expert, multiplied_out
from tests.helpers.training import steps

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-5
TARGETS = ["q_proj", "k_proj", "down_proj", "embed_tokens", "lm_head"]
LINEAR = ["q_proj", "k_proj", "down_proj"]


def everywhere(model, folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


def in_memory(model, folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, torch.device("cpu"))


def on_disk(model, folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.disk_offload(model, str(folder / "offload"), torch.device("cpu"))


def by_map(model, folder):
    """As users have it: a device_map of from_pretrained, some of it on disk."""
    pytest.importorskip("accelerate")
    model.save_pretrained(folder / "base")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    keys = {"device_map": places, "offload_folder": folder / "offload", "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder / "base", **keys).eval()


PLACED = {"everywhere": everywhere, "in_memory": in_memory, "on_disk": on_disk, "by_map": by_map}


@pytest.mark.parametrize(("placed", "variant"), crossed(PLACED, VARIANTS, always=[("on_disk", "dora")]))
def test_adapters_follow_modules_that_accelerate_has_placed(placed, variant, tmp_path):
    targets = LINEAR if variant == "bias" else TARGETS
    wanted = logits(saved(tiny_model("llama"), tmp_path / "x", target_modules=targets, **VARIANTS[variant]))
    model = PLACED[placed](tiny_model("llama"), tmp_path)
    if placed != "everywhere":
        assert any(parameter.is_meta for parameter in model.parameters())
    base, before = logits(model), hook_count(model)
    with attach(model, {"x": tmp_path / "x"}) as session:
        with session.use("x"):
            assert (logits(model) - wanted).abs().max() < TOLERANCE
        with session.route(["x", None, "x"]):
            mixed = logits(model)
        assert (mixed[::2] - wanted[::2]).abs().max() < TOLERANCE
        assert (mixed[1] - base[1]).abs().max() < TOLERANCE
    assert torch.equal(logits(model), base)
    assert hook_count(model) == before


@pytest.mark.parametrize("placed", PLACED)
def test_spectral_adapters_are_held_to_weights_that_accelerate_has_placed(placed, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))
    model, cache = tiny_model("llama"), SvdCache()
    made = expert(model, LINEAR, cache)
    wanted = logits(multiplied_out(model, [(1.0, made)], cache))
    model = PLACED[placed](model, tmp_path)
    with attach(model, {"x": made}) as session:
        with session.use("x"):
            assert (logits(model) - wanted).abs().max() < TOLERANCE
        with pytest.raises(RefusedError, match="SHA-256"):
            session.load("y", expert(tiny_model("llama", seed=1), LINEAR, cache))


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_training_over_an_offloaded_base_is_that_over_a_loaded_one(variant, tmp_path, in_double):
    base = tiny_model("llama").double()
    saved(base, tmp_path / "x", target_modules=LINEAR, lora_dropout=0.2, **VARIANTS[variant])
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "x", is_trainable=True)
    wanted = steps(theirs, [p for p in theirs.parameters() if p.requires_grad], count=3)
    model = on_disk(base, tmp_path)
    with attach(model, {"x": tmp_path / "x"}) as session:
        leaves = session.parameters("x")
        session.activate("x")
        assert steps(model, leaves, count=3) == pytest.approx(wanted, abs=EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_is_cast_keeps_its_adapters(dtype, variant, tmp_path):
    """They stay in the dtype that they were attached in, and the model's answers are of its own."""
    model = tiny_model("llama")
    exact = logits(saved(model, tmp_path, target_modules=LINEAR, **VARIANTS[variant]))
    with attach(model, {"x": tmp_path}) as session:
        model.to(dtype)
        plain = logits(model)
        with session.use("x"):
            cast = logits(model)
        with session.route(["x", None, "x"]):
            mixed = logits(model)
        assert cast.dtype is mixed.dtype is plain.dtype
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        anew = logits(model)
    for found in (cast, mixed[::2]):
        given = exact if found is cast else exact[::2]
        assert (found - given).abs().max() < 2 * (anew - exact).abs().max()
    model.float()
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert (logits(model) - cast).abs().max() < 4 * (anew - exact).abs().max()


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_is_moved_says_so(training, tmp_path):
    """Tensors on "meta" mix with others until somebody asks for their numbers, as measuring does."""
    model = tiny_model("llama")
    saved(model, tmp_path, target_modules=LINEAR)
    with attach(model, {"x": tmp_path}, measure=True) as session:
        if training:
            session.parameters("x")
        model.to("meta")
        given = {name: tensor.to("meta") for name, tensor in inputs(model).items()}
        with session.use("x"), pytest.raises(RefusedError, match="on meta now, and its adapters are on cpu"):
            logits(model, **given)
        with session.route(["x", None, None]), pytest.raises(RefusedError, match="Attach again"):
            logits(model, **given)
        with pytest.raises(RefusedError, match="no weights"):
            session.load("y", tmp_path)


def test_what_would_replace_a_tensor_of_an_offloaded_module_is_refused(tmp_path):
    saved(tiny_model("llama", seed=1), tmp_path / "x", target_modules=LINEAR, modules_to_save=["lm_head"])
    model = on_disk(tiny_model("llama"), tmp_path)
    before = hook_count(model)
    with pytest.raises(RefusedError) as caught:
        attach(model, {"x": tmp_path / "x"})
    assert {problem.code for problem in caught.value.problems} == {"weights-not-loaded"}
    assert hook_count(model) == before


def test_a_module_that_computes_elsewhere_has_its_input_there_too(tmp_path):
    """As a head on another device than the last layer: the kernel is asked on the head's."""
    model = everywhere(tiny_model("llama"), tmp_path)
    saved(tiny_model("llama"), tmp_path, target_modules=["lm_head"])
    asked = []

    class Witness:
        embedding = False

        def add(self, x, y):
            asked.append((x.device.type, y.device.type))
            return y

    with attach(model, {"x": tmp_path}) as session:
        (site,) = session._adapters._loaded["x"].kernels
        session.adopt("witness", {site: Witness()})
        model.lm_head._hf_hook.execution_device = torch.device("meta")
        with session.use("witness"), pytest.raises(NotImplementedError):  # nothing comes back from "meta"
            logits(model)
    assert asked == [("meta", "meta")]
