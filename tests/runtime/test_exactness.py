"""Exactness of adapters on live models in breadth: awkward shapes, mixed ranks, sums, rows; peft is the judge."""

import copy
import warnings
from functools import cache

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.attaching import attach
from tests.helpers.attached import TOLERANCE, hook_count, inputs, logits
from tests.helpers.families import FAMILIES, tiny_config, tiny_model
from tests.helpers.peft_models import everything, linear_names, trained
from tests.helpers.sampling import crossed

pytestmark = pytest.mark.numeric

#: every natural model, and the variants whose weights lie in another way
MODELS = [(family, 0) for family in sorted(FAMILIES)] + [
    ("falcon", 1),
    ("falcon", 2),
    ("llama", 1),
    ("opt", 1),
    ("t5", 1),
]


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def saved(model, folder, *, seed=1, **keys):
    """An adapter trained at random and saved; the model as peft loads it from the file."""
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5} | keys))
    quietly(lambda: trained(peft.get_peft_model(copy.deepcopy(model), config), seed).save_pretrained(folder))
    return quietly(lambda: peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval())


def near(found, wanted):
    return (found - wanted).abs().max() < TOLERANCE


def changes(model, adapted):
    """What each adapter adds to each tensor of the model, as peft merges it; a bias of B it cannot merge."""
    base = model.state_dict()
    merged = {
        name: quietly(copy.deepcopy(one).merge_and_unload).state_dict()
        for name, one in adapted.items()
        if name != "bias"
    }
    return {name: {key: whole[key].double() - base[key] for key in base} for name, whole in merged.items()}


def summed(model, changes, weights):
    """The model with Σ weight · ΔW in its weights."""
    oracle = copy.deepcopy(model)
    state = {
        key: (tensor + sum(weight * changes[name][key] for name, weight in weights.items())).to(tensor.dtype)
        for key, tensor in model.state_dict().items()
    }
    oracle.load_state_dict(state)
    return oracle


def linears(family, model):
    """All linear layers, with ranks and alphas that differ by module, but for the experts, which have no modules
    of their own; in Qwen's mixtures peft takes gate_proj and its like for those too."""
    keys = everything(family, model)
    if keys.pop("target_parameters", None):
        keys["target_modules"] = [name for name in keys["target_modules"] if name[1:] == "_proj"]
    return keys


@pytest.mark.parametrize("model_of", MODELS, ids=str)
def test_every_linear_layer_with_ranks_and_alphas_of_its_own(model_of, tmp_path):
    family, variant = model_of
    model = tiny_model(family, variant=variant)
    adapted = saved(model, tmp_path, **linears(family, model))
    base, wanted = logits(model), logits(adapted)
    assert not near(base, wanted)
    with attach(model, {"x": tmp_path}) as session:
        with session.use("x"):
            assert near(logits(model), wanted)
        with session.route([None, "x", None]):
            mixed = logits(model)
    assert near(mixed[0], base[0])
    assert near(mixed[1], wanted[1])
    assert torch.equal(logits(model), base)


PARTS = {
    "layers": {"layers_to_transform": [0, 2], "target_modules": ["q_proj", "down_proj"]},
    "one layer": {"layers_to_transform": 1, "target_modules": ["v_proj"]},
    "a pattern": {"target_modules": r".*layers\.[12]\.(self_attn\.[kv]|mlp\.gate)_proj"},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "up_proj"]},
    "patterns of ranks": {
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "rank_pattern": {"k_proj": 7, r"layers\.2\..*q_proj": 1},
        "alpha_pattern": {r"layers\.0\.self_attn\.o_proj": 1, "q_proj": 9},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_net(part, family, tmp_path):
    model = tiny_model(family)
    adapted = saved(model, tmp_path, **PARTS[part])
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(adapted))
        hooked = set(session.report().injections)
    targeted = {name for name, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert len(hooked) == len(targeted)


#: family -> the modules of four adapters: plain, rslora, dora, lora_bias; fused ones and Conv1D among them
TARGETS = {
    "gpt2": "c_attn c_proj c_attn c_fc",
    "bert": "query value dense key",
    "roberta": "query value dense key",
    "distilbert": "q_lin v_lin lin1 lin2",
    "phi3": "qkv_proj gate_up_proj o_proj qkv_proj",
    "gpt_neox": "query_key_value dense query_key_value dense_h_to_4h",
    "falcon": "query_key_value dense_4h_to_h query_key_value dense",
    "bloom": "query_key_value dense_h_to_4h query_key_value dense",
    "opt": "q_proj v_proj fc1 q_proj",
    "t5": "q v wi q",
}
VARIANTS = {
    "plain": {"r": 3},
    "rslora": {"r": 5, "use_rslora": True},
    "dora": {"r": 2, "use_dora": True},
    "bias": {"r": 4, "lora_bias": True},
}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """By family: the model, the folders of four adapters of unlike variants and ranks, and their peft models."""

    @cache
    def make(family):
        model = tiny_model(family)
        folder = tmp_path_factory.mktemp(family)
        targets = TARGETS.get(family, "q_proj v_proj q_proj o_proj").split()
        adapted = {
            name: saved(model, folder / name, seed=seed, target_modules=[target], **VARIANTS[name])
            for seed, (name, target) in enumerate(zip(VARIANTS, targets, strict=True))
        }
        return model, {name: folder / name for name in VARIANTS}, adapted

    return make


ROWS = ["plain", None, "dora", "rslora", "bias", "plain"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_of_unlike_variants_are_each_as_alone(family, four):
    model, folders, adapted = four(family)
    batch = inputs(model, len(ROWS))
    alone = {None: logits(model, **batch), **{name: logits(one, **batch) for name, one in adapted.items()}}
    with attach(model, folders) as session, session.route(ROWS):
        mixed = logits(model, **batch)
    for row, name in enumerate(ROWS):
        assert near(mixed[row], alone[name][row]), (row, name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "falcon", "mixtral"])
def test_a_batch_of_names_is_that_of_peft(family, four):
    """peft mixes plain adapters and the base; DoRA it does not."""
    model, folders, _ = four(family)
    rows = ["rslora", None, "plain", "plain", "rslora"]
    batch = inputs(model, len(rows))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), folders["plain"], adapter_name="plain").eval()
    theirs.load_adapter(folders["rslora"], "rslora")
    wanted = logits(theirs, **batch, adapter_names=[name or "__base__" for name in rows])
    with attach(model, folders) as session, session.route(rows):
        assert near(logits(model, **batch), wanted)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_weighted_sum_of_unlike_variants(family, four):
    model, folders, adapted = four(family)
    weights = {"plain": 0.7, "dora": -0.4, "rslora": 1.3}
    wanted = logits(summed(model, changes(model, adapted), weights))
    with attach(model, folders) as session, session.use(weights):
        assert near(logits(model), wanted)


def test_any_weighted_sum(four):
    """Hypothesis inside, since the models are made once for all examples."""
    model, folders, adapted = four("gemma3_text")
    added = changes(model, adapted)

    @settings(max_examples=15, deadline=None)
    @given(st.dictionaries(st.sampled_from(["plain", "rslora", "dora"]), st.floats(-1.5, 1.5), min_size=1))
    def same(weights):
        wanted = logits(summed(model, added, weights))
        with attach(model, folders) as session, session.use(weights):
            assert near(logits(model), wanted)

    same()


def test_pefts_own_weighted_adapter(four):
    model, folders, _ = four("qwen3")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), folders["plain"], adapter_name="plain").eval()
    theirs.load_adapter(folders["rslora"], "rslora")
    theirs.add_weighted_adapter(["plain", "rslora"], [0.6, 0.9], "sum", combination_type="cat")
    theirs.set_adapter("sum")
    with attach(model, folders) as session, session.use({"plain": 0.6, "rslora": 0.9}):
        assert near(logits(model), logits(theirs))


def test_nothing_of_a_full_adapter_stays_under_a_partial_one(tmp_path):
    model = tiny_model("llama")
    saved(model, tmp_path / "full", use_dora=True, lora_bias=False, target_modules=linear_names(model))
    partial = saved(model, tmp_path / "part", seed=2, target_modules=["v_proj"], layers_to_transform=[1])
    with attach(model, {"part": tmp_path / "part"}) as session, session.use("part"):
        wanted = logits(model)
    assert near(wanted, logits(partial))
    with attach(model, {"full": tmp_path / "full", "part": tmp_path / "part"}) as session:
        with session.use("full"):
            logits(model)
        with session.use("part"):
            assert torch.equal(logits(model), wanted)
        session.load("full", tmp_path / "part")
        with session.use("full"):
            assert torch.equal(logits(model), wanted)
        with session.route(["full", "part", "full"]):
            assert near(logits(model), wanted)


def tied(family, *, tie):
    config = tiny_config(family)
    config.tie_word_embeddings, config._attn_implementation = tie, "eager"
    torch.manual_seed(0)
    return type(tiny_model(family))(config).eval()


ENDS = {
    "gpt2": ["wte", "wpe", "c_attn"],
    "llama": ["embed_tokens", "lm_head", "q_proj"],
    "gemma3_text": ["embed_tokens", "v_proj"],
    "gpt_neox": ["embed_in", "embed_out"],
    "opt": ["embed_tokens", "q_proj"],
}


@pytest.mark.parametrize(("family", "tie", "dora"), crossed(ENDS, [True, False], [False, True]))
def test_embeddings_and_heads_tied_or_not(family, tie, dora, tmp_path):
    model = tied(family, tie=tie)
    adapted = saved(model, tmp_path, target_modules=ENDS[family], rank_pattern={ENDS[family][0]: 5}, use_dora=dora)
    base, wanted = logits(model), logits(adapted)
    with attach(model, {"x": tmp_path}) as session:
        with session.use("x"):
            assert near(logits(model), wanted)
        if "wpe" in ENDS[family]:  # looked up once for all rows
            return
        with session.route(["x", None, "x"]):
            mixed = logits(model)
        assert near(mixed[1], base[1])
        assert near(mixed[2], wanted[2])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_plan_is_peft_with_the_other_layers_at_zero(family, four, tmp_path):
    model, folders, adapted = four(family)
    for name in ("plain", "dora", "bias"):
        file = adaptrix.convert(folders[name], tmp_path / f"{name}.adaptrix.safetensors", layers="0,2")
        oracle = copy.deepcopy(adapted[name])
        for path, module in oracle.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer) and ".1." in path:
                module.scaling["default"] = 0.0
                if name == "dora":
                    module.enable_adapters(False)
        with attach(model, {"x": file}) as session, session.use("x"):
            assert near(logits(model), logits(oracle)), name


def test_an_adapter_of_the_head_model_acts_on_the_bare_one(four):
    model, folders, adapted = four("llama")
    batch = inputs(model)
    before = hook_count(model)
    with torch.no_grad(), attach(model.model, folders) as session, session.use("rslora"):
        found = model.model(**batch).last_hidden_state
        wanted = adapted["rslora"].base_model.model.model(**batch).last_hidden_state
    assert near(found, wanted)
    assert hook_count(model) == before
