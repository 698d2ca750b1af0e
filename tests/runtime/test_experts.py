"""Changes of parameters that modules read themselves: stacked experts, routers, bare parameters. peft is the judge."""

import copy
import itertools
import threading

import peft
import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import save_file
from torch import nn

import adaptrix
from adaptrix.errors import AdaptrixError, RefusedError, UsageError
from tests.helpers.attached import TOLERANCE, hook_count, inputs, logits
from tests.helpers.other_families import TEXT, deepseek, filled, glm, gpt_oss, of

_STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


class Bare(transformers.PreTrainedConfig):
    """The config of models that no family knows."""

    model_type = "bare"


def mixtral():
    return of("MixtralForCausalLM", **{**TEXT, "num_local_experts": 4})


def qwen3_moe():
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    return of("Qwen3MoeForCausalLM", **TEXT, **sizes)


def square_gpt_oss():
    """Stored [in, out], and hidden = intermediate as in both published sizes."""
    return gpt_oss(intermediate_size=32)


MODELS = {build.__name__.rstrip("_"): build for build in (mixtral, qwen3_moe, gpt_oss, square_gpt_oss, deepseek, glm)}


def adapted(model, folder, seed=0, rank=3, alpha=7, **keys):
    """peft's model of a random LoRA, which is saved."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=False, **{"target_modules": [], **keys})
    made = peft.get_peft_model(copy.deepcopy(model), config).eval()
    made.save_pretrained(folder)
    return made


def near(found, wanted):
    return (found - wanted).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A Mixtral, and two adapters of its experts and attention."""
    model, folder = mixtral(), tmp_path_factory.mktemp("experts")
    one = adapted(model, folder / "a", 1, target_modules=["q_proj"], target_parameters=_STACKS)
    other = adapted(model, folder / "b", 2, rank=2, target_parameters=["mlp.experts.down_proj"])
    return model, {name: folder / name for name in "ab"}, {"a": one, "b": other}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_stacked_experts_act_as_in_peft(build, tmp_path):
    model = build()
    theirs = adapted(model, tmp_path, target_modules=["q_proj"], target_parameters=_STACKS)
    before, given = logits(model), inputs(model)
    with adaptrix.attach(model, {"x": tmp_path}) as session:
        assert torch.equal(logits(model), before)
        with session.use("x"):
            assert near(logits(model), logits(theirs))
            written = model.generate(**given, max_new_tokens=4, do_sample=False)
    assert not near(before, logits(theirs))
    assert torch.equal(written, theirs.generate(**given, max_new_tokens=4, do_sample=False))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_the_way_in_which_a_base_computes_experts_stays_its_own(way, two):
    model, folders, theirs = two
    model.set_experts_implementation(way)
    before, config = logits(model), model.model.layers[0].mlp.experts.config
    with adaptrix.attach(model, {"a": folders["a"]}) as session, session.use("a"):
        assert near(logits(model), logits(theirs["a"]))
    assert config is model.model.layers[0].mlp.experts.config
    assert config._experts_implementation == way
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("parameter", ["mlp.router.weight", "mlp.router.weight mlp.experts.down_proj"])
def test_a_router_that_answers_with_several_tensors(parameter, tmp_path):
    model = gpt_oss()
    theirs = adapted(model, tmp_path, target_parameters=parameter.split())
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(theirs))


def test_a_router_saved_whole(tmp_path):
    model = gpt_oss()
    theirs = adapted(model, tmp_path, target_modules=["q_proj"], modules_to_save=["router"])
    weight = {}
    for name, parameter in theirs.named_parameters():
        if "modules_to_save" in name and name.endswith("weight"):
            weight[name] = nn.init.normal_(parameter.data)
    theirs.save_pretrained(tmp_path)
    with adaptrix.attach(model, {"x": tmp_path}) as session:
        with session.use("x"):
            assert near(logits(model), logits(theirs))
        with pytest.raises(UsageError, match="several tensors"), session.route(["x", None, "x"]):
            logits(model)


def test_experts_that_older_files_keep_apart(tmp_path):
    """Mixtral's adapters of transformers 4 have w1, w2 and w3 of each expert, here of unlike ranks."""
    model, wanted = mixtral(), mixtral()
    torch.manual_seed(5)
    tensors, ranks = {}, {"w1": 3, r"experts\.[12]\.w2": 2, r"experts\.3\.w3": 1}
    for layer, expert, name in itertools.product(range(2), range(4), ("w1", "w2", "w3")):
        rank = ranks.get(name, 2 if name == "w2" and expert in (1, 2) else 1 if (name, expert) == ("w3", 3) else 4)
        out, inp = (32, 48) if name == "w2" else (48, 32)
        A, B = torch.randn(rank, inp) / 4, torch.randn(out, rank) / 4
        path = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        tensors |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
        experts = wanted.model.layers[layer].mlp.experts
        stack = experts.down_proj if name == "w2" else experts.gate_up_proj
        rows = slice(48, 96) if name == "w3" else slice(0, out)
        stack.data[expert, rows] += 6 / rank * B @ A
    config = peft.LoraConfig(r=4, lora_alpha=6, rank_pattern=ranks, target_modules=["w1", "w2", "w3"])
    config.base_model_name_or_path = "mixtral"
    config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(wanted))


def test_a_weighted_sum_is_that_of_the_changes(two):
    model, folders, theirs = two
    wanted = copy.deepcopy(model)
    with torch.no_grad():
        for one in theirs.values():
            merged = copy.deepcopy(one).merge_and_unload().state_dict()
            for key, parameter in wanted.named_parameters():
                parameter += 0.5 * (merged[key] - model.state_dict()[key])
    with adaptrix.attach(model, folders) as session, session.use({"a": 0.5, "b": 0.5}):
        assert near(logits(model), logits(wanted))


def test_threads_have_experts_of_their_own(two):
    model, folders, theirs = two
    found, given = {}, inputs(model)

    def serve(session, name):
        with session.use(name):
            found[name] = [logits(model, **given) for _ in range(4)]

    with adaptrix.attach(model, folders) as session:
        threads = [threading.Thread(target=serve, args=(session, name)) for name in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(near(one, logits(theirs[name])) for name in folders for one in found[name])


def test_gradients_reach_what_is_below_and_layers_may_be_recomputed(two):
    model, folders, theirs = two

    def gradient(one):
        embedded = one.get_input_embeddings()(inputs(model)["input_ids"]).detach().requires_grad_()
        one(inputs_embeds=embedded).logits.square().mean().backward()
        return embedded.grad

    with adaptrix.attach(model, folders) as session, session.use("a"):
        plain = gradient(model)
        model.train().gradient_checkpointing_enable()
        again = gradient(model)
        model.eval().gradient_checkpointing_disable()
    wanted = gradient(theirs["a"])
    assert (plain - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (again - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_cache_is_swapped(two):
    model, folders, theirs = two
    given = inputs(model)["input_ids"]
    with torch.no_grad(), adaptrix.attach(model, folders) as session:
        cache = session.new_cache()
        with session.use("b"):
            model(given, past_key_values=cache)
        session.swap("a", cache)
        next_token = given[:, :1]
        found = model(next_token, past_key_values=cache).logits[:, -1]
    assert near(found, logits(theirs["a"], input_ids=torch.cat([given, next_token], 1))[:, -1])


def test_the_model_is_as_it_was_after_the_session_and_after_a_failure(two, tmp_path):
    model, folders, _ = two
    fields = {name: dict(vars(module)) for name, module in model.named_modules()}
    state, hooks = copy.deepcopy(model.state_dict()), hook_count(model)
    with adaptrix.attach(model, folders) as session:
        with session.use("a"):
            logits(model)
        with pytest.raises(AdaptrixError):
            session.load("c", tmp_path / "nothing")
    assert hook_count(model) == hooks
    assert all(vars(module).keys() == fields[name].keys() for name, module in model.named_modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert "forward" not in vars(model.model.layers[0].mlp.experts)


def test_what_such_a_change_cannot_do_is_refused_by_name(two):
    model, folders, _ = two
    before = hook_count(model)
    with adaptrix.attach(model, folders) as session:
        with pytest.raises(UsageError, match="which row each is of is not known"), session.route(["a", None, "a"]):
            logits(model)
        with pytest.raises(RefusedError, match="which alone are trained"):
            session.parameters("a")
        with pytest.raises(RefusedError, match="its forward was replaced"):
            adaptrix.attach(model, folders)
    with pytest.raises(RefusedError, match="low-rank changes in slots"):
        adaptrix.attach(model, folders, slots=2)
    with pytest.raises(RefusedError, match="no drift"):
        adaptrix.attach(model, folders, measure=True)
    assert hook_count(model) == before


class OneHot(transformers.PreTrainedModel):
    """A model that gives its tokens, one-hot, to one module."""

    config_class = Bare

    def __init__(self, config, inner):
        super().__init__(config)
        self.inner = inner
        self.post_init()

    def forward(self, input_ids):
        answer = self.inner(nn.functional.one_hot(input_ids, 8).float())
        return answer if isinstance(answer, torch.Tensor) else answer[0]


class Mixer(nn.Module):
    """A bare matrix, stored [in, out], and one that is kept in a list, too."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(8, 8))
        self.listed = nn.Parameter(torch.empty(8, 8))
        self.parts = [self.listed]

    def forward(self, x):
        return torch.tanh(x @ self.matrix) + x @ self.matrix.T + x @ self.parts[0]


@pytest.mark.parametrize("part", [Mixer, lambda: nn.LSTM(8, 8)], ids=["bare", "lstm"])
def test_a_square_bare_matrix_gets_the_change_as_it_is_stored(part, tmp_path):
    model = filled(OneHot(Bare(), part()))
    name = "matrix" if isinstance(model.inner, Mixer) else "weight_ih_l0"
    theirs = adapted(model, tmp_path, target_parameters=[f"inner.{name}"])
    given, wanted = torch.arange(6).view(2, 3), theirs.merge_and_unload()
    with torch.no_grad(), adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(model(given), wanted(given))


def test_a_parameter_that_a_forward_never_reads_is_named(tmp_path):
    """An adapter that did nothing would go unseen."""
    model = filled(OneHot(Bare(), Mixer()))
    adapted(model, tmp_path, target_parameters=["inner.listed"])
    refused = pytest.raises(RefusedError, match="does not read this parameter")
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"), refused:
        model(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_exact_answer_than_peft(dtype, tmp_path):
    model = mixtral()
    theirs = adapted(model, tmp_path, rank=2, alpha=1, target_parameters=_STACKS)
    exact = logits(theirs)
    model, theirs = model.to(dtype), theirs.to(dtype)
    with adaptrix.attach(model, {"x": tmp_path}) as session, session.use("x"):
        ours = logits(model).float()
    assert (ours - exact).norm() < 1.5 * (logits(theirs).float() - exact).norm()


def offloaded(model):
    """A copy of a model whose experts and routers accelerate brings in when they run."""
    model = copy.deepcopy(model)
    for module in [part for layer in model.model.layers for part in (layer.mlp.experts, layer.mlp.gate)]:
        weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        hook = AlignDevicesHook(execution_device=torch.device("cpu"), offload=True, weights_map=weights)
        add_hook_to_module(module, hook)
    return model


def test_experts_that_accelerate_offloads(tmp_path):
    model = mixtral()
    theirs = adapted(model, tmp_path, target_parameters=[*_STACKS, "mlp.gate.weight"])
    away = offloaded(model)
    with adaptrix.attach(away, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(away), logits(theirs))
    assert near(logits(away), logits(model))
    assert away.model.layers[0].mlp.experts.gate_up_proj.is_meta


def test_a_model_compiled_under_a_session_runs_its_experts(two):
    model, folders, theirs = two
    with adaptrix.attach(model, folders) as session:
        compiled = torch.compile(model, backend="eager")
        with session.use("a"):
            assert near(logits(compiled), logits(theirs["a"]))
        assert near(logits(compiled), logits(model))
