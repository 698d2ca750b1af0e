"""One more kind of delta needs its answers and its rows in the tables, and no change of the package."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adaptrix
from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.architecture import Site
from adaptrix.architecture.dims import Dims
from adaptrix.delta import Delta, LowRank, kinds
from adaptrix.errors import RefusedError
from adaptrix.formats import injection_kinds
from adaptrix.merging import drafting
from adaptrix.runtime import kinds as runtime_kinds
from adaptrix.runtime.kernel import Adding, Kernel
from adaptrix.runtime.mixing import summed
from adaptrix.runtime.trainable import Leaves
from tests.helpers.diagonal import FILE_ROW, RUNTIME_ROW, Diagonal, DiagonalKernel, DiagonalLeaves, answers, tensor


def register(monkeypatch, module, entry):
    monkeypatch.setattr(module, "KINDS", MappingProxyType({**module.KINDS, "diagonal": entry}))


@pytest.fixture
def listed(monkeypatch):
    """The third kind in the list, and in the table of the file."""
    register(monkeypatch, kinds, Diagonal)
    register(monkeypatch, injection_kinds, FILE_ROW)


@pytest.fixture
def attachable(listed, monkeypatch):
    register(monkeypatch, runtime_kinds, RUNTIME_ROW)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a model whose q_proj is square, and the model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 34}
    config = LlamaConfig(**sizes, vocab_size=61, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model, folder = LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return str(folder), model


def adapter(seed=0, size=24, role="self_attn.q_proj"):
    rng = np.random.default_rng(seed)
    paths = [f"model.layers.{layer}.{role}" for layer in range(2)]
    deltas = {Target(path): Diagonal(tensor(rng, size)) for path in paths}
    return Adapter("thirds", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 11).reshape(2, 4)).logits


def merged(model, change):
    """The model's logits with something added to each q_proj: ``change`` of its layer, ``[out, in]``."""
    held = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    before = [weight.detach().clone() for weight in held]
    with torch.no_grad():
        for layer, weight in enumerate(held):
            weight += torch.from_numpy(change(layer)).to(weight)
        found = logits(model)
        for weight, own in zip(held, before, strict=True):
            weight.copy_(own)
    return found


def dense(adapter, layer):
    return [*adapter.deltas.values()][layer].dense()


def test_the_third_kind_answers_everything():
    asked = answers(Delta)
    assert [name for name in sorted(asked) if not hasattr(Diagonal, name) and name not in Diagonal.__slots__] == []
    for protocol, made in ((Adding, DiagonalKernel), (Leaves, DiagonalLeaves)):
        assert [name for name in sorted(answers(protocol)) if not hasattr(made, name)] == []


def test_a_file_gives_the_third_kind_back(listed, base, tmp_path):
    made = adapter()
    path = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base[0], layers="0")
    again = adaptrix.load(path)
    for target, delta in made.deltas.items():
        assert again.deltas[target].v.tobytes() == delta.v.tobytes()
    found = adaptrix.inspect(path, base=base[0])
    (role,) = found.roles
    assert role.kinds == ("diagonal",)
    assert role.energy == pytest.approx(sum((dense(made, layer) ** 2).sum() for layer in range(2)))
    assert adaptrix.check(path, base=base[0]).ok


def test_a_third_kind_of_another_size_is_refused_in_its_own_words(listed, base):
    cause, first, *_ = adaptrix.check(adapter(size=20), base=base[0]).problems
    assert (cause.code, first.code) == ("shape", "shape")
    assert "hidden 20, the base has 24" in cause.found
    assert first.found == "20 numbers of v (out)"


def test_a_plan_is_pruned_and_rounded_with_the_third_kind_in_it(listed, base, tmp_path):
    path = adaptrix.convert(adapter(), tmp_path / "a.adaptrix.safetensors", base=base[0], layers="1", prune=True)
    (delta,) = adaptrix.load(path).deltas.values()
    assert np.array_equal(delta.dense(), dense(adapter(), 1))
    path = adaptrix.convert(adapter(), tmp_path / "b.adaptrix.safetensors", base=base[0], dtype="bf16")
    assert {delta.v.dtype for delta in adaptrix.load(path).deltas.values()} == {"BF16"}


@pytest.mark.parametrize("rank", [None, 20])
def test_peft_gets_the_lora_that_the_third_kind_says_it_is(listed, base, tmp_path, rank):
    path = adaptrix.convert(adapter(), tmp_path / "peft", to="peft", base=base[0], rank=rank, max_error=rank and 0.9)
    for target, delta in adaptrix.load(path).deltas.items():
        wanted, _ = adapter().deltas[target].low_rank(rank)
        assert np.allclose(delta.dense(), wanted.dense())


def refusals(action):
    with pytest.raises(RefusedError) as error:
        action()
    return error.value.problems


def test_what_has_no_way_for_the_third_kind_refuses_it_by_name(listed, base, tmp_path):
    path = adaptrix.convert(adapter(), tmp_path / "a.adaptrix.safetensors", base=base[0], layers="all")
    attempts = (
        lambda: adaptrix.combine([path, path], out=tmp_path / "sum.adaptrix.safetensors"),
        lambda: adaptrix.merge(path, base[0], tmp_path / "merged"),
        lambda: adaptrix.attach(base[1], {"one": path}),
        lambda: adaptrix.convert(path, tmp_path / "b.adaptrix.safetensors", rank=2),
    )
    for attempt in attempts:
        problems = refusals(attempt)
        assert {problem.code for problem in problems} == {"kind-unsupported"}
        assert all("a diagonal delta" in problem.found for problem in problems)
        assert {problem.where.split()[-1] for problem in problems} == {"layers.0.q", "layers.1.q"}  # all at once
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_with_a_kind_that_is_not_listed_is_refused_by_name(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        register(patch, injection_kinds, FILE_ROW)
        path = adaptrix.convert(adapter(), tmp_path / "a.adaptrix.safetensors", base=base[0])
    problems = refusals(lambda: adaptrix.convert(path, tmp_path / "b.adaptrix.safetensors"))
    assert kinds.one_of(kinds.KINDS) in {problem.expected for problem in problems}
    refused = refusals(lambda: adaptrix.convert(adapter(), tmp_path / "c.adaptrix.safetensors", base=base[0]))
    assert "a diagonal delta, a kind that an injection file has no way for" in {each.found for each in refused}


def test_the_third_kind_is_merged_as_its_row_says(listed, base, tmp_path, monkeypatch):
    def gather(planner, deltas):
        planner.low_rank({site: delta.low_rank()[0] for site, delta in deltas.items()})

    register(monkeypatch, drafting, gather)
    folder, model = base
    path = adaptrix.convert(adapter(), tmp_path / "a.adaptrix.safetensors", base=folder, layers="all")
    made = LlamaForCausalLM.from_pretrained(adaptrix.merge(path, folder, tmp_path / "merged"))
    assert torch.allclose(logits(made), merged(model, lambda layer: dense(adapter(), layer)), atol=1e-5)


def test_the_third_kind_acts_on_a_live_model(attachable, base):
    _, model = base
    with adaptrix.attach(model, {"one": adapter()}) as session, session.use("one"):
        found = logits(model)
    assert torch.allclose(found, merged(model, lambda layer: dense(adapter(), layer)), atol=1e-5)
    assert not torch.allclose(found, logits(model), atol=1e-3)


@pytest.fixture
def low_rank():
    rng = np.random.default_rng(7)
    factors = [(tensor(rng, 2, 24), tensor(rng, 24, 2)) for _ in range(2)]
    deltas = {target: LowRank(A, B, alpha=1.0) for target, (A, B) in zip(adapter().deltas, factors, strict=True)}
    return Adapter("low", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def test_the_third_kind_in_sums_and_in_rows_of_its_own(attachable, base, low_rank):
    _, model = base
    one, other = adapter(1), adapter(2)
    with adaptrix.attach(model, {"one": one, "other": other, "low": low_rank}) as session:
        with session.use({"one": 0.5, "other": -1.0, "low": 2.0}):
            mixed = logits(model)
        with session.route(["one", "low"]):
            by_row = logits(model)
    wanted = merged(model, lambda n: 0.5 * dense(one, n) - dense(other, n) + 2.0 * dense(low_rank, n))
    assert torch.allclose(mixed, wanted, atol=1e-5)
    assert torch.allclose(by_row[0], merged(model, lambda n: dense(one, n))[0], atol=1e-5)
    assert torch.allclose(by_row[1], merged(model, lambda n: dense(low_rank, n))[1], atol=1e-5)


def test_the_third_kind_is_trained(attachable, base):
    _, model = base
    with adaptrix.attach(model, {"one": adapter()}) as session:
        leaves = session.named_parameters("one")
        assert {name.rpartition(".")[2] for name in leaves} == {"diagonal_v"}
        session.activate("one")
        model(torch.arange(3, 11).reshape(2, 4)).logits.sum().backward()
        with torch.no_grad():
            for leaf in leaves.values():
                assert leaf.grad is not None
                assert leaf.grad.abs().sum() > 0
                leaf.add_(1.0)
        now = session.adapter("one")
    for target, delta in adapter().deltas.items():
        assert np.allclose(now.deltas[target].dense(), delta.dense() + np.eye(24), atol=1e-6)
    model.zero_grad()


def test_slots_say_what_they_do_not_hold(attachable, base):
    problems = refusals(lambda: adaptrix.attach(base[1], {"one": adapter()}, slots=2, max_rank=4))
    assert {problem.found for problem in problems} == {"a diagonal delta"}


def test_the_families_of_a_mixture_that_read_the_output_read_the_module_s_own():
    @dataclass(frozen=True, slots=True, eq=False)
    class Gain(DiagonalKernel):
        reads_output: ClassVar[bool] = True

        def delta(self, x, y):
            return y * self.v

    def dora(n):
        return Kernel(torch.zeros(n, 1), torch.zeros(1, n), g=torch.full((n,), 3.0))

    x, y = torch.ones(2, 4), torch.full((2, 4), 5.0)
    both = summed(Site(0, "q"), [(1.0, Gain(torch.ones(4))), (1.0, dora(4))])
    assert torch.equal(both.add(x, y.clone()), y + 1 * y + 2 * y)


def test_dims_are_inferred_from_the_third_kind_too(listed):
    bound = adaptrix.check(adapter()).bound
    assert isinstance(bound.dims, Dims)
    assert bound.dims.get("hidden") == 24
