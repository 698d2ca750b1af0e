"""The meaning of the rows of fused weights, read from the forward pass of a real model.

Each part of a fused weight is disturbed, one head at a time, in a tiny model with random weights; the
model's own forward pass then shows what depends on it. Keys and values are read from the cache, queries
from the attention's probabilities, a gated feed-forward from its being linear in ``up`` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import read_dims
from adaptrix.architecture.layout import RowIndex, role_rows
from adaptrix.base.meta_model import model_classes, need

_TOKENS = 5


class Oracle:
    """A language model of a family with one config and random weights, and the checks that it answers."""

    def __init__(self, architecture: Architecture, config: Any) -> None:
        torch = need("torch")
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"  # the one that returns its probabilities
        config._experts_implementation = "eager"  # the one that takes any size
        torch.manual_seed(0)
        self.architecture = architecture
        self.dims = read_dims(architecture.dims, config.to_dict())
        self.model = model_classes(config)[0](config).eval().requires_grad_(False)
        self.ids = torch.arange(3, 3 + _TOKENS)[None]
        self.memory = torch.randn(1, _TOKENS, self.dims.get("hidden") or 1)
        for parameter in self.model.parameters():  # the usual 0.02 leaves differences too small to see
            parameter.normal_(std=0.3)

    def misnamed(self, role: Role) -> list[str]:
        """The faults in the order of a fused role's parts, as far as this config has the role."""
        with _one_thread():
            return list(self._misnamed(role))

    def _misnamed(self, role: Role) -> Iterator[str]:
        rows = role_rows(role, self.dims)
        try:
            weight = self._weight(role)
        except AttributeError:
            return
        if rows is None or sum(map(len, rows.values())) != weight.shape[_axis(role)]:
            yield f"role {role.name}: its parts do not add up to {list(weight.shape)}"
        elif role.parts.keys() == {"gate", "up"}:
            yield from self._gated(role, weight, rows)
        elif role.parts.keys() in ({"q", "k", "v"}, {"k", "v"}):
            yield from self._attention(role, weight, rows)
        else:
            yield f"role {role.name}: no forward pass shows what {sorted(role.parts)} are; list it in unchecked_parts"

    def _weight(self, role: Role) -> Any:
        """The role's parameter in the first layer. ``AttributeError`` where this config has none."""
        owner, _, name = self.architecture.path(Site(0 if role.layered else None, role.name)).rpartition(".")
        found = getattr(self.model.get_submodule(owner), name)
        return found if isinstance(found, need("torch").nn.Parameter) else found.weight

    def _attention(self, role: Role, weight: Any, rows: dict[str, RowIndex]) -> Iterator[str]:
        """Each head's rows of a part must change that head of what the part is for, and nothing upstream."""
        cross = "q" not in role.parts
        before = self._heads(cross)
        width = before["v"].shape[-1]
        for part, index in rows.items():
            count = len(index) // width
            each = before[part].shape[1] // count  # heads that share these rows, where they are spread out
            for head in range(count):
                with _scaled(weight, _axis(role), index[head * width : (head + 1) * width], -1.5):
                    after = self._heads(cross)
                changed = {name: _changed_heads(before[name], after[name]) for name in before}
                expected: dict[str, list[int]] = {name: [] for name in before}
                expected[part] = list(range(head * each, (head + 1) * each))
                if part != "q" and not cross:
                    changed.pop("q")  # keys change the probabilities, and values do not: see below
                    expected.pop("q")
                if changed != expected:
                    yield f"role {role.name}: head {head} of {part!r} changes heads {changed}, not {expected}"
        if not cross:
            yield from self._values_are_not_keys(role, weight, rows, before["q"])

    def _values_are_not_keys(self, role: Role, weight: Any, rows: dict[str, RowIndex], before: Any) -> Iterator[str]:
        for part, matters in (("k", True), ("v", False)):
            with _scaled(weight, _axis(role), rows[part], -1.5):
                changed = bool(_changed_heads(before, self._heads(False)["q"]))
            if changed is not matters:
                yield f"role {role.name}: {part!r} {'does not change' if matters else 'changes'} the probabilities"

    def _gated(self, role: Role, weight: Any, rows: dict[str, RowIndex]) -> Iterator[str]:
        torch = need("torch")
        owner = self.architecture.path(Site(0 if role.layered else None, role.name)).rpartition(".")[0]
        before = self._output(owner)
        for part, linear in (("up", True), ("gate", False)):
            with _scaled(weight, _axis(role), rows[part], 2.0):
                doubled = torch.allclose(self._output(owner), 2 * before, rtol=1e-4, atol=1e-6)
            if doubled is not linear:
                yield f"role {role.name}: the output is {'not ' if linear else ''}linear in {part!r}"

    def _heads(self, cross: bool) -> dict[str, Any]:
        """The first layer's results of q, k and v, all ``[batch, heads, …]``: probabilities, keys and values."""
        options = {"encoder_hidden_states": self.memory} if cross else {}
        result = self.model(input_ids=self.ids, use_cache=True, output_attentions=True, **options)
        cache = result.past_key_values
        if hasattr(cache, "cross_attention_cache"):
            cache = cache.cross_attention_cache if cross else cache.self_attention_cache
        seen = {"k": cache.layers[0].keys, "v": cache.layers[0].values}
        return seen if cross else {"q": result.attentions[0], **seen}

    def _output(self, owner: str) -> Any:
        """The output of a module of the first layer."""
        caught: list[Any] = []
        handle = self.model.get_submodule(owner).register_forward_hook(lambda _, __, output: caught.append(output))
        try:
            self.model(input_ids=self.ids)
        finally:
            handle.remove()
        return caught[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread: models this small would mostly wait for other threads."""
    torch = need("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _axis(role: Role) -> int:
    """The axis of a stored weight that holds the rows of ΔW."""
    return {"linear": 0, "conv1d": 1, "embedding": 1, "experts": 1, "experts_transposed": 2}[role.orientation]


def _changed_heads(before: Any, after: Any) -> list[int]:
    differs = (before - after).abs().amax(dim=(0, 2, 3)) > 1e-5
    return [head for head, different in enumerate(differs.tolist()) if different]


@contextmanager
def _scaled(weight: Any, axis: int, rows: RowIndex, factor: float) -> Iterator[None]:
    """The weight with some of its rows multiplied, for as long as the block lasts."""
    kept = weight.detach().clone()
    index = need("torch").as_tensor(rows)
    try:
        weight.index_copy_(axis, index, kept.index_select(axis, index) * factor)
        yield
    finally:
        weight.copy_(kept)
