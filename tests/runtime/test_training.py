"""Training where an adapter is attached, with peft as the judge; dense weights and autograd where peft has no say."""

import copy
from contextlib import nullcontext

import peft
import pytest
import torch
from torch.func import functional_call

import adaptrix
from adaptrix.adapter import Target
from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from adaptrix.runtime.kernel import Kernel
from tests.helpers.attached import TARGETS, VARIANTS, logits, saved
from tests.helpers.double import EXACT, double
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import rewrite
from tests.helpers.sampling import crossed
from tests.helpers.training import loss_of, steps, tokens

pytestmark = pytest.mark.numeric

LLAMA = ["q_proj", "k_proj", "down_proj"]


def trainable(folder, model):
    """A fresh copy of a model with an adapter to be trained by peft."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder, is_trainable=True)


def assert_same_adapter(ours, theirs):
    """Two peft models have one adapter."""
    found, wanted = (peft.get_peft_model_state_dict(model) for model in (ours, theirs))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() < EXACT, name


@pytest.fixture(autouse=True)
def _in_double(request):
    """Everything but what is about another dtype is compared in double."""
    with nullcontext() if "dtype" in request.fixturenames else double():
        yield


@pytest.fixture
def llama():
    return tiny_model("llama").double()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("pair"), tiny_model("llama").double()
    saved(model, folder / "a", seed=1, rank=3, target_modules=LLAMA)
    saved(model, folder / "b", seed=2, rank=5, target_modules=["q_proj", "v_proj", "embed_tokens"])
    return {"a": folder / "a", "b": folder / "b"}


@pytest.mark.parametrize(
    ("family", "variant", "dropout"),
    crossed(
        ["llama", "gpt2", "gpt_neox", "gemma2"],
        VARIANTS,
        [0.0, 0.3],
        always=[("gpt_neox", "rslora", 0.3), ("gemma2", "lora", 0.0), ("llama", "dora", 0.3)],
    ),
)
def test_five_steps_are_those_of_peft(family, variant, dropout, tmp_path):
    model = tiny_model(family).double()
    targets = TARGETS.get(family, LLAMA if variant == "bias" else [*LLAMA, "embed_tokens"])
    saved(model, tmp_path / "x", target_modules=targets, lora_dropout=dropout, **VARIANTS[variant])
    theirs = trainable(tmp_path / "x", model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with attach(model, {"x": tmp_path / "x"}) as session:
        ours = session.parameters("x")
        assert [id(p) for p in session.parameters("x")] == [id(p) for p in ours]
        session.activate("x")
        got, wanted = steps(model, ours), steps(theirs, [p for p in theirs.parameters() if p.requires_grad])
        assert got == pytest.approx(wanted, abs=EXACT)
        assert len(set(got)) == 5
        assert sorted(p.first.norm().item() for p in ours) == pytest.approx(
            sorted(p.first.norm().item() for p in theirs.parameters() if p.requires_grad), abs=EXACT
        )
        answer = logits(model)
        adaptrix.convert(session.adapter("x"), tmp_path / "back", to="peft")
    back = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "back").eval()
    assert_same_adapter(back, theirs)
    assert (logits(back) - answer).abs().max() < EXACT
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_base_of_half_precision_leaves_are_fp32_as_in_peft(dtype, llama, tmp_path):
    llama.to(dtype)
    saved(llama, tmp_path, target_modules=LLAMA)
    theirs = trainable(tmp_path, llama)
    with attach(llama, {"x": tmp_path}) as session:
        ours = session.parameters("x")
        assert {p.dtype for p in ours} == {torch.float32}
        session.activate("x")
        wanted = steps(theirs, [p for p in theirs.parameters() if p.requires_grad])
        assert steps(llama, ours) == pytest.approx(wanted, rel=torch.finfo(dtype).eps)


def test_asking_for_parameters_changes_nothing_but_the_kind(llama, pair):
    with attach(llama, pair) as session:
        before = {}
        for choice in ("a", "b"):
            with session.use(choice):
                before[choice] = logits(llama)
        session.parameters("a")
        with session.use("a"):
            assert (logits(llama) - before["a"]).abs().max() < EXACT
        session.activate("a")
        steps(llama, session.parameters("a"))
        assert (logits(llama) - before["a"]).abs().max() > 1e-3
        with session.use("b"):
            assert torch.equal(logits(llama), before["b"])


def dense(model, session, names):
    """The model's weights with the leaves' ΔW in them, by autograd: weight × name."""
    weights = {}
    for name, weight in names.items():
        for change in (change.leaves for change in session._adapters._loaded[name].kernels.values()):
            key = f"{change.reached.name}.weight"
            own = weights.get(key, model.get_parameter(key))
            delta = sum(part.whole @ part.A for part in change.parts.values())
            turned = type(change.reached.module).__name__ == "Conv1D" or change.embedding
            weights[key] = own + weight * (delta.T if turned else delta)
    return weights


def gradients(loss, leaves):
    """Those of a loss, zero where it does not reach; the graph is kept."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_equal_gradients(one, other):
    for first, second in zip(one, other, strict=True):
        assert (first - second).abs().max() < EXACT


def test_gradients_of_a_weighted_sum_reach_every_term_in_training(llama, pair):
    names = {"a": 0.7, "b": -0.3}
    with attach(llama, pair) as session:
        leaves = {name: session.parameters(name) for name in names}
        weights = dense(llama, session, names)
        given = {"input_ids": tokens(), "labels": tokens()}
        loss = functional_call(llama, weights, kwargs=given, tie_weights=False).loss
        wanted = torch.autograd.grad(loss, leaves["a"] + leaves["b"])
        with session.use(names):
            assert_equal_gradients(torch.autograd.grad(loss_of(llama), leaves["a"] + leaves["b"]), wanted)
        session.load("b", session.adapter("b"))
        with session.use(names):
            assert_equal_gradients(torch.autograd.grad(loss_of(llama), leaves["a"]), wanted[: len(leaves["a"])])


def test_each_row_teaches_its_own_adapter(llama, pair):
    given = tokens(4)
    rows = ["a", None, "b", "a"]

    def row_loss(answer, row):
        return answer[row].square().mean()

    with attach(llama, pair) as session:
        leaves = {name: session.parameters(name) for name in "ab"}
        with session.route(rows):
            answer = llama(input_ids=given).logits
            for row, name in enumerate(rows):
                if name is None:
                    continue
                other = "b" if name == "a" else "a"
                got = gradients(row_loss(answer, row), leaves[name])
                assert not any(g.any() for g in gradients(row_loss(answer, row), leaves[other]))
                with session.use(name):
                    alone = llama(input_ids=given[row : row + 1]).logits
                assert_equal_gradients(got, gradients(row_loss(alone, 0), leaves[name]))


def test_kernels_given_as_they_are_get_the_gradients_of_their_rows(llama, pair):
    """As from a network that makes them: a tensor for each row, one adapter each."""
    with attach(llama, {"a": pair["a"]}) as session:
        site = next(site for site in session._adapters._loaded["a"].kernels if site.role == "q")
        llama.requires_grad_(False)
        made = torch.randn(2, 24, 3, dtype=torch.float64, requires_grad=True)
        Bt = torch.randn(2, 3, 60, dtype=torch.float64, requires_grad=True)
        for row in range(2):
            session.adopt(f"made{row}", {site: Kernel(made[row], Bt[row])})
        with session.route(["made1", "made0", None]):
            loss = llama(input_ids=tokens(3)).logits[0].square().mean()
        got = torch.autograd.grad(loss, (made, Bt))
        with session.use("made1"):
            alone = llama(input_ids=tokens(3)[:1]).logits[0].square().mean()
        wanted = torch.autograd.grad(alone, (made, Bt))
    assert not got[0][0].any()
    assert got[0][1].any()
    assert_equal_gradients(got, wanted)


def test_parts_of_a_fused_weight_are_learned_apart(tmp_path):
    """The legacy MergedLinear: query and value of three."""
    model = tiny_model("gpt2").double()
    saved(model, tmp_path, target_modules=["c_attn"], rank=4)

    def merged(state):
        for key, tensor in state.items():
            if "lora_B" in key:
                state[key] = torch.randn(2 * len(tensor) // 3, 2, 1) * 0.2

    rewrite(tmp_path, merged, r=2, enable_lora=[True, False, True], fan_in_fan_out=True)
    with attach(model, {"x": tmp_path}) as session:
        leaves = session.parameters("x")
        weights = dense(model, session, {"x": 1.0})
        given = {"input_ids": tokens(), "labels": tokens()}
        wanted = gradients(functional_call(model, weights, kwargs=given, tie_weights=False).loss, leaves)
        with session.use("x"):
            got = gradients(loss_of(model), leaves)
    assert len(leaves) == 3 * 4
    assert all(g.any() for g in got)
    assert_equal_gradients(got, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(reentrant, llama, pair):
    with attach(llama, pair) as session:
        leaves = session.parameters("a")
        llama.train()
        with session.use("a"):
            wanted = gradients(loss_of(llama), leaves)
        llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with session.use("a"):
            loss = loss_of(llama)
        with session.use("b"):
            loss.backward()
    assert_equal_gradients([leaf.grad for leaf in leaves], wanted)


def test_what_a_plan_leaves_out_is_not_trained_and_not_lost(llama, pair, tmp_path):
    file = adaptrix.convert(pair["a"], tmp_path / "a.adaptrix.safetensors", layers="0,2", redistribute="nearest")
    before = adaptrix.load(file)
    with attach(llama, {"x": file}) as session:
        leaves = session.parameters("x")
        with session.use("x"):
            steps(llama, leaves)
            wanted = logits(llama)
        adapter = session.adapter("x")
    assert len(leaves) == 2 * len(LLAMA) * 2
    for layer in (0, 1):  # the plan has others in the place of layer 0's, and nothing in that of layer 1's
        target = Target(f"model.layers.{layer}.self_attn.q_proj")
        assert adapter.deltas[target].A.tobytes() == before.deltas[target].A.tobytes()
    back = adaptrix.convert(adapter, tmp_path / "back.adaptrix.safetensors")
    with attach(llama, {"x": back}) as session, session.use("x"):
        assert (logits(llama) - wanted).abs().max() < EXACT


def test_an_adapter_in_training_goes_back_to_one_at_rest(llama, pair):
    with attach(llama, pair) as session:
        with session.use("a"):
            before = logits(llama)
        leaves = session.parameters("a")
        with session.use("a"):
            steps(llama, leaves, count=2)
            trained = logits(llama)
        session.load("done", session.adapter("a"))
        with session.use("done"):
            assert (logits(llama) - trained).abs().max() < EXACT
            assert (logits(llama) - before).abs().max() > 1e-3
        assert session.adapter("b").name == "b"


REFUSALS = {
    "default": "in-use",
    "use": "in-use",
    "unknown": "adapter-unknown",
    "extras": "extra-unsupported",
    "dropout": "config-value",
    "kernels": "option",
    "file": "file-changed",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_cannot_be_trained_is_refused_and_nothing_has_changed(how, llama, pair, tmp_path):
    more = {"head": {"modules_to_save": ["lm_head"]}, "odd": {}, "file": {}}
    for name, options in more.items():
        saved(llama, tmp_path / name, target_modules=["q_proj"], **options)
    rewrite(tmp_path / "odd", lora_dropout="half")
    with attach(llama, pair | {name: tmp_path / name for name in more}) as session:
        if how == "file":  # other numbers of the same shapes written over those loaded
            weights = tmp_path / "file" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
        session.adopt("kernels", session._adapters._loaded["a"].kernels)
        name = {"unknown": "nobody", "extras": "head", "dropout": "odd", "file": "file", "kernels": "kernels"}.get(
            how, "a"
        )
        session.activate("a" if how == "default" else None)
        with session.use("a" if how == "use" else "b"):
            before = logits(llama)
            with pytest.raises((RefusedError, UsageError)) as caught:
                session.parameters(name)
            assert torch.equal(logits(llama), before)
    assert {problem.code for problem in caught.value.problems} == {REFUSALS[how]}
    assert all(p.requires_grad for p in llama.parameters())
