"""Every pair of formats: what is read from one and written to the other is the same change to the same weights.

The adapters are random, of every module that a dialect has a name for: GQA, a head_dim that is not hidden / heads,
mixed ranks and scales, magnitudes, stacked experts, no B that is zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import read_dims
from adaptrix.architecture.vocabulary import Vocabulary
from adaptrix.binding.bind import bind
from adaptrix.binding.identify import by_config
from adaptrix.delta import LowRank
from adaptrix.errors import RefusedError, errors_in
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import make_plan
from adaptrix.plugins.catalog import Catalog
from adaptrix.tensor import Array, Tensor
from tests.helpers.families import FAMILIES

CATALOG = Catalog()
PIPELINE = Pipeline(CATALOG)
KNOWN = {each.family: each for each in CATALOG.architectures}
SPOKEN = [(family, name) for family, each in KNOWN.items() for name in each.dialects]
FORMATS = sorted({name for _, name in SPOKEN})


def _config(family: str) -> dict[str, object]:
    config = dict(FAMILIES[family][0])
    return {**config, "tie_word_embeddings": False}


def _random(rng: np.random.Generator, shape: tuple[int, int], rank: int, **options: object) -> LowRank:
    out, inp = shape
    A, B = (rng.standard_normal(each).astype(np.float32) for each in ((rank, inp), (out, rank)))
    return LowRank(Tensor.of(A), Tensor.of(B), **options)  # type: ignore[arg-type]


def _paths(role: Role, layer: int | None, experts: int) -> list[str]:
    """The module paths of a role in a checkpoint of PEFT's: each expert's own module where there is one."""
    paths = [path for path in role.paths if "{expert}" in path] or [role.paths[0]]
    paths = [each[0] for each in role.part_paths.values()] or paths[:1]
    return [path.format(layer=layer, expert=expert) for path in paths for expert in range(experts)]


def _adapter(family: Architecture, dialects: Sequence[str], seed: int, *, dora: bool, mixed: bool) -> Adapter:
    """An adapter on all that the dialects have names for."""
    rng = np.random.default_rng(seed)
    dims = read_dims(family.dims, _config(family.family))
    vocabularies = [Vocabulary(family.dialects[dialect].table, family) for dialect in dialects]
    deltas = {}
    for role in family.roles.values():
        names = [[each.entry(role.name, part) for part in (None, *role.parts)] for each in vocabularies]
        if not all(map(any, names)):
            continue
        for layer in range(3) if role.layered else [None]:
            for path in _paths(role, layer, dims.get(role.experts) or 1 if role.experts else 1):
                site = family.locate(path)
                assert site is not None
                shape = tuple(dims.get(each or "") for each in role.shape(site.part))
                rank = int(rng.integers(1, 5)) if mixed else 3
                embedding = role.orientation == "embedding"
                alpha = float(rng.integers(1, 9)) if mixed else 4.5
                delta = _random(rng, shape, rank, alpha=alpha, embedding=embedding)  # type: ignore[arg-type]
                if dora and not embedding and not role.experts:
                    delta = replace(delta, magnitude=Tensor.of(rng.random(shape[0] or 0).astype(np.float32)))
                if not (dora and (embedding or role.experts)):
                    deltas[Target(path)] = delta
    return Adapter("made", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def _changes(deltas: Mapping[Site, LowRank], family: Architecture) -> dict[str, Array]:
    """ΔW and magnitude of every module, of every expert and part apart."""
    found: dict[str, Array] = {}
    for site, delta in deltas.items():
        dense = delta.dense()
        for expert, each in enumerate(dense if dense.ndim == 3 else [dense]):
            where = site if dense.ndim == 2 else replace(site, expert=expert)
            found[str(where)] = each
        if delta.magnitude is not None:
            found[f"{site} magnitude"] = delta.magnitude.float64()
    return {name: each for name, each in found.items() if np.any(each)}


def _written(adapter: Adapter, config: Mapping[str, object], to: str, folder: Path) -> Adapter:
    """What is read back of an adapter that was written in a format."""
    bound = bind(adapter, by_config(config, CATALOG.architectures, adapter))
    assert not errors_in(bound.problems)
    done = PIPELINE.publish(make_plan(bound, "all"), str(folder / f"x-{to}"), Options(to=to, force=True))
    return PIPELINE.read(str(done.path))


def _bound(adapter: Adapter, base: Path) -> Mapping[Site, LowRank]:
    bound = PIPELINE.bind(adapter, str(base))
    assert not errors_in(bound.problems), errors_in(bound.problems)
    return bound.deltas  # type: ignore[return-value]


def _compare(one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-6, atol=1e-6 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize(("family", "dialect"), SPOKEN)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), dora=st.booleans(), mixed=st.booleans())
def test_what_is_written_is_read_back(
    family: str, dialect: str, seed: int, dora: bool, mixed: bool, tmp_path: Path
) -> None:
    known, config = KNOWN[family], _config(family)
    dora = dora and "dora" in CATALOG.writable[dialect].carries
    adapter = _adapter(known, [dialect], seed, dora=dora, mixed=mixed)
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = _changes(_bound(adapter, tmp_path), known)
    read = _written(adapter, config, dialect, tmp_path)
    assert read.dialect == dialect
    _compare(before, _changes(_bound(read, tmp_path), known))


@pytest.mark.parametrize("family", sorted({family for family, _ in SPOKEN}))
def test_a_journey_through_every_format_changes_nothing(family: str, tmp_path: Path) -> None:
    known, config = KNOWN[family], _config(family)
    (tmp_path / "config.json").write_text(json.dumps(config))
    experts = any(role.experts for role in known.roles.values())
    formats = [*sorted(known.dialects), "injection", *([] if experts else ["peft"])]
    adapter = _adapter(known, sorted(known.dialects), 7, dora=False, mixed=False)
    before = _changes(_bound(adapter, tmp_path), known)
    for at, to in enumerate((*formats, *reversed(formats))):
        own = PIPELINE.bind(adapter, str(tmp_path)).adapter
        (tmp_path / str(at)).mkdir()
        adapter = _written(own, config, to, tmp_path / str(at))
    _compare(before, _changes(_bound(adapter, tmp_path), known))


@pytest.mark.parametrize(("family", "dialect"), SPOKEN)
def test_tables_name_roles_of_their_family_and_every_name_means_one_site(family: str, dialect: str) -> None:
    known = KNOWN[family]
    vocabulary = Vocabulary(known.dialects[dialect].table, known)
    for entry in vocabulary.entries:
        role = known.roles[entry.role]
        assert entry.part is None or entry.part in role.parts
        assert ("{layer}" in entry.path) == role.layered
        site = Site(2 if role.layered else None, entry.role, entry.part)
        assert vocabulary.locate(vocabulary.spelled(entry, site)) == (site, entry)


def test_rows_that_lie_by_head_need_the_config_of_the_base(tmp_path: Path) -> None:
    adapter = _adapter(KNOWN["llama"], ["gguf"], 1, dora=False, mixed=False)
    read = _written(adapter, _config("llama"), "gguf", tmp_path)
    problems = {problem.code: problem for problem in PIPELINE.bind(read).problems}
    assert "--base" in problems["base-needed"].remedy
    assert "heads" in problems["base-needed"].found


def test_a_base_of_another_family_is_refused(tmp_path: Path) -> None:
    adapter = _adapter(KNOWN["llama"], ["gguf"], 1, dora=False, mixed=False)
    read = _written(adapter, _config("llama"), "gguf", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(_config("qwen2")))
    (problem,) = errors_in(PIPELINE.bind(read, str(tmp_path)).problems)
    assert (problem.code, problem.expected) == ("dialect-unknown", "qwen2")
    (tmp_path / "config.json").write_text(json.dumps(_config("opt")))
    (problem,) = errors_in(PIPELINE.bind(read, str(tmp_path)).problems)
    assert "no names of gguf are known for opt" in problem.found


def test_sites_without_a_name_are_refused_all_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deltas = {Target(path): _random(rng, (3, 24), 2, alpha=2.0) for path in ("score", "qa_outputs")}
    adapter = Adapter("made", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))
    with pytest.raises(RefusedError) as caught:
        _written(adapter, _config("llama"), "mlx", tmp_path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("dialect-unnamed", "2 sites")
    assert not list(tmp_path.iterdir())
