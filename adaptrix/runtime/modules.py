"""Finds the modules of a live model that sites name, and refuses models and modules that hooks cannot serve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import getsource
from operator import is_

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from adaptrix.architecture import Architecture, Site
from adaptrix.errors import Problem, RefusedError, UsageError
from adaptrix.planning.plan import Plan
from adaptrix.wording import some


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A module of the model by its own name, and the site of its whole weight.

    ``parameter``: where the module does more than one product, and so is run with another tensor in the place of this
    parameter; None where a hook adds to its output. ``expert``, ``rows``: the expert of a stack, and the rows
    (first, one past the last) of its ``[out]``, that a delta found here is of; None for all.
    """

    name: str
    site: Site
    module: nn.Module
    parameter: str | None = None
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """The steps from a model down to modules of it: a table of children, a name in it, and the module there."""

    tables: tuple[dict[str, nn.Module | None], ...]
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def intact(self) -> bool:
        """True while every module is still there. Read before every pass, so it makes no Python call for each step."""
        return all(map(is_, map(dict.get, self.tables, self.names), self.modules))


def links(model: nn.Module, found: Iterable[Reached]) -> Links:
    """The steps to these modules, each once; not intact where a module is no longer where it was found."""
    steps = {(id(table), name): (table, name, child) for each in found for table, name, child in _steps(model, each)}
    tables, names, modules = zip(*steps.values(), strict=True) if steps else ((), (), ())
    return Links(tables, names, modules)


def _steps(model: nn.Module, found: Reached) -> Iterator[tuple[dict[str, nn.Module | None], str, nn.Module]]:
    owner, (*owners, leaf) = model, found.name.split(".")
    for step in owners:
        child = owner._modules.get(step)
        yield owner._modules, step, found.module if child is None else child
        if child is None:
            return
        owner = child
    yield owner._modules, leaf, found.module


def reached(model: nn.Module, architecture: Architecture) -> dict[Site, Reached]:
    """Every module that the architecture has a site for, by that site."""
    found: dict[Site, Reached] = {}
    for name, module in model.named_modules():
        site = architecture.locate(name) if name else None
        if site is not None:
            found[site] = Reached(name, site, module, _read_inside(module))
        for leaf in _bare(module):
            site = architecture.locate(f"{name}.{leaf}" if name else leaf)
            if site is not None:
                found[site] = Reached(name, site, module, leaf)
    return found


def _read_inside(module: nn.Module) -> str | None:
    """The weight of a module that may answer with something else than its product, as routers do; else None."""
    weight = None if isinstance(module, _PRODUCTS) else module._parameters.get("weight")
    return "weight" if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _bare(module: nn.Module) -> Iterator[str]:
    """The names of parameters of two axes or three that are no ``weight``, as stacks of experts are."""
    own = module._parameters.items()
    return (name for name, one in own if name not in ("weight", "bias") and one is not None and one.dim() in (2, 3))


def require_plain(model: object) -> None:
    """Raises :class:`RefusedError` for a model that another library has already changed, or a compiled one, and
    :class:`UsageError` for what is no model."""
    if not isinstance(model, nn.Module):
        remedy = "adaptrix.attach(model, {name: adapter}); of a pipeline, its .model."
        raise UsageError(
            Problem("model-unsupported", "model", f"a {type(model).__name__}", "a transformers model", remedy)
        )
    problems = [*compiled(model), *_wrapped(model)]
    if problems:
        raise RefusedError(problems)


def compiled(model: nn.Module) -> Iterator[Problem]:
    """A problem for a model that is compiled, whole or in part."""
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl or _compiled_forward(m) for m in model.modules()):
        yield Problem(
            "model-wrapped",
            type(model).__name__,
            "compiled, whole or in part: its graph does not see hooks that come later",
            "the model as it was before",
            "Attach first and compile afterwards: torch.compile(model) inside `with adaptrix.attach(model, …)`.",
        )


def _compiled_forward(module: nn.Module) -> bool:
    """True for a module whose forward was replaced by a compiled one, by a session's or by the user's."""
    own = vars(module).get("forward")
    marked = [each for each in (own, getattr(own, "__wrapped__", None)) if hasattr(each, "_torchdynamo_orig_callable")]
    return any(not getattr(each, "_torchdynamo_disable", False) for each in marked)


def _wrapped(model: nn.Module) -> Iterator[Problem]:
    if type(model).__module__.startswith("peft.") or any(
        type(module).__module__.startswith("peft.") for module in model.modules()
    ):
        yield Problem(
            "model-wrapped",
            type(model).__name__,
            "a model that peft has wrapped: its modules add deltas of their own",
            "a plain transformers model",
            "Attach to peft_model.unload(), or load the base again.",
        )


def unreachable(plan: Plan, modules: Mapping[Site, Reached]) -> Iterator[Problem]:
    """A problem for every active site that the model lacks or that a hook cannot serve."""
    for site in plan.sites:
        for code, found, expected, remedy in _obstacles(plan, site, modules.get(whole_site(site))):
            yield Problem(code, f"{plan.bound.adapter.name} {site}", found, expected, remedy)


def _obstacles(plan: Plan, site: Site, found: Reached | None) -> Iterator[tuple[str, str, str, str]]:
    """Reasons why a site cannot be served: code, found, expected, remedy."""
    if not plan.delta(site).rank:
        yield "rank", "a delta of rank 0", "a rank of at least 1", "Leave the module out."
    weight = None if found is None else _weight(found)
    if found is None:
        remedy = "Attach with layers=… that leave it out, or to the model it was made for."
        yield "module-missing", "the model has no such module", "one for every site", remedy
    elif not isinstance(weight, Tensor):
        said = f"its module is a {type(found.module).__name__}, which has no weight of its own"
        yield "module-unsupported", said, "a linear layer or an embedding", MERGE
    elif weight.is_meta and not hasattr(found.module, "_hf_hook"):
        yield (
            "weights-not-loaded",
            "the module has no weights (meta device)",
            "a loaded model",
            "Load the model's weights first.",
        )
    elif found.parameter is None and not isinstance(found.module, _PRODUCTS):
        said = f"its module is a {type(found.module).__name__}, which may return something other than its product"
        yield "module-unsupported", said, "a linear layer or an embedding", MERGE
    elif site.role.startswith("modules.") and found.parameter is None and found.site == site:
        shape, own = plan.delta(site).shape, _sides(found.module)
        if own is not None and shape != own:
            yield "shape", f"ΔW is {list(shape)}", f"{list(own)}, as the module has it", _SIZE


def _sides(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a module's product, however its weight is stored or packed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    return (module.weight.shape[1], module.weight.shape[0]) if isinstance(module, Conv1D) else None


def _weight(found: Reached) -> object:
    """The target of a delta found here: the module's weight, or the parameter inside of it."""
    return getattr(found.module, found.parameter or "weight", None)


def inert(plan: Plan, model: nn.Module, modules: Mapping[Site, Reached]) -> Iterator[Problem]:
    """A warning for each class that never calls modules of active sites: their deltas have no effect while attached."""
    found = ((site, modules.get(whole_site(site))) for site in plan.sites)
    readers = {site: never_called(model, module) for site, module in found if module is not None}
    for reader in sorted(set(readers.values()) - {""}):
        sites = [str(site) for site in readers if readers[site] == reader]
        said = f"{reader} reads the weight here and never calls the module: attached, the delta does nothing"
        where = f"{plan.bound.adapter.name} {some(sites, 3)}"
        yield Problem("module-unsupported", where, said, "a module that is called", MERGE, "warning")


def never_called(model: nn.Module, found: Reached) -> str:
    """The class around a module that reads its weight and never calls it; empty where it is called, or may be."""
    owner, _, leaf = found.name.rpartition(".")
    around: type = type(model.get_submodule(owner))
    if isinstance(found.module, NonDynamicallyQuantizableLinear):
        return f"nn.{around.__name__}" if around.__module__.startswith("torch.nn.") else around.__name__
    return around.__name__ if _only_reads(around, leaf) else ""


@cache
def _only_reads(around: type, leaf: str) -> bool:
    """True where all that the source of a class says of a module of its own is its making, weight and bias."""
    try:
        source = getsource(around)
    except (OSError, TypeError):
        return False
    said = re.findall(rf"self\.{re.escape(leaf)}\b(\.weight\b|\.bias\b|\s*=(?!=))?", source)
    return ".weight" in said and "" not in said and _makes(around, leaf, source)


def _makes(around: type, leaf: str, source: str) -> bool:
    """True where the class itself makes the module and runs; a parent class might call what it inherits."""
    return re.search(rf"self\.{re.escape(leaf)}\s*=", source) is not None and around.__bases__ == (nn.Module,)


_SIZE = "The adapter belongs to a model of another size."
MERGE = "Merge the adapter into its base instead, or attach with layers=… that leave it out."
#: modules whose output is the product of their input and their weight, so that what a hook adds is what ΔW does
_PRODUCTS = (nn.Linear, nn.Embedding, Conv1D)


def whole_site(site: Site) -> Site:
    """The site of the whole weight that a part belongs to."""
    return site if site.part is None and site.expert is None else Site(site.layer, site.role)
