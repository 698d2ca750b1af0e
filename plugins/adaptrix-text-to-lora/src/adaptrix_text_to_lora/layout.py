"""Reads the shape of a hypernetwork off its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from adaptrix import Problem, RefusedError, Tensor
from adaptrix.extend import some
from adaptrix_text_to_lora.settings import Settings
from adaptrix_text_to_lora.shape import Module, Output, Shape, Variant

_HEAD = re.compile(r"heads\.(.+)\.weight")
_NAME = re.compile(r"[A-Za-z_]\w*")
_EXPECTED = {"task_encoder.mlp.0.weight": 2, "layer_depth_encoder.0.weight": 2, "mixer.1.weight": 2, "mlp3.4.weight": 2}


def read_shape(tensors: Mapping[str, Tensor], settings: Settings, where: str) -> Shape:
    """The shape of the hypernetwork with this state dict. Raises :class:`RefusedError` with every problem.

    The published code numbers modules in the order of a set, which differs between processes, and makes its heads
    in that same order: the order of the ``heads.`` keys is that of the type embeddings.
    """
    names = [found[1] for key in tensors if (found := _HEAD.fullmatch(key))]
    if problems := [*_absent(tensors, names, where), *_disagreements(names, tensors, settings, where)]:
        raise RefusedError(problems)
    modules = tuple(_module(name, tensors) for name in names)
    shape = Shape(
        variant=_variant(modules, tensors, settings, where),
        modules=modules,
        layers=tensors["layer_depth_encoder.0.weight"].shape[0],
        rank=settings.rank,
        embedding=tensors["task_encoder.mlp.0.weight"].shape[1],
        latent=tensors["mixer.1.weight"].shape[1],
        head_in=tensors["mlp3.4.weight"].shape[0],
        bias=f"heads.{names[0]}.bias" in tensors,
        output=_output(settings),
    )
    if problems := list(_contradictions(shape, settings, where)):
        raise RefusedError(problems)
    return shape


def _absent(tensors: Mapping[str, Tensor], names: list[str], where: str) -> Iterator[Problem]:
    """Tensors that the sizes are read from, and names that no module can have."""
    wanted = dict(_EXPECTED)
    for name in names:
        wanted |= {f"AB_offset.{side}.{name}": 3 for side in "AB"} | {f"heads.{name}.weight": 2}
        if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
            yield Problem(
                "hypernetwork-invalid", f"{where} heads", f"{ascii(name)[:80]} is no name of a module", "such as q_proj"
            )
    if not names:
        yield Problem("hypernetwork-invalid", where, "it has no heads.<module>.weight", "a Text-to-LoRA hypernetwork")
    for key, axes in wanted.items():
        if key not in tensors or len(tensors[key].shape) != axes or 0 in tensors[key].shape:
            found = f"its shape is {list(tensors[key].shape)}" if key in tensors else "it is not there"
            yield Problem("tensor-missing", f"{where} {key}", found, f"a tensor of {axes} axes")


def _disagreements(
    names: list[str], tensors: Mapping[str, Tensor], settings: Settings, where: str
) -> Iterator[Problem]:
    """Problems of modules and ranks in which the adapter's config and the state dict differ."""
    if settings.targets is not None and settings.targets != set(names):
        found = f"heads for {some(sorted(names))}"
        yield Problem("hypernetwork-invalid", where, found, f"{some(sorted(settings.targets))}, as target_modules say")
    for name in names:
        offset = tensors.get(f"AB_offset.A.{name}")
        if offset is not None and len(offset.shape) == 3 and offset.shape[1] != settings.rank:
            found, expected = f"rank {offset.shape[1]}", f"{settings.rank}, the r of adapter_config.json"
            yield Problem("hypernetwork-invalid", f"{where} AB_offset.A.{name}", found, expected)


def _module(name: str, tensors: Mapping[str, Tensor]) -> Module:
    return Module(name, tensors[f"AB_offset.A.{name}"].shape[2], tensors[f"AB_offset.B.{name}"].shape[1])


def _variant(modules: tuple[Module, ...], tensors: Mapping[str, Tensor], settings: Settings, where: str) -> Variant:
    """By the width of the first head; strict loading holds all others to it. Raises :class:`RefusedError`."""
    first, rank = modules[0], settings.rank
    width = tensors[f"heads.{first.name}.weight"].shape[0]
    shared = any(key.startswith("out_emb.") for key in tensors)
    ranked = any(key.startswith("pos_emb.") for key in tensors)
    if not shared and width == rank * (first.inp + first.out):
        return "L"
    if shared and not ranked and width == rank * first.widest:
        return "M"
    if shared and ranked and width == first.widest:
        return "S"
    found = f"a head of {width} for {first.name}, {'' if shared else 'not '}shared by A and B"
    ranks = ", with learned ranks" if ranked else ", without learned ranks"
    remedy = "Rotary rank positions and one rank at a time without sharing are not read."
    raise RefusedError(Problem("hypernetwork-unsupported", where, found + ranks, "the published L, M or S", remedy))


def _output(settings: Settings) -> Output:
    if settings.task == "sft":
        return "added"
    return "z-score" if settings.z_scored else "plain"


def _contradictions(shape: Shape, settings: Settings, where: str) -> Iterator[Problem]:
    """Problems of sizes in which args.yaml and the state dict differ."""
    found = {
        "hypernet_latent_size": shape.latent,
        "head_in_size": shape.head_in,
        "shared_AB_head": shape.variant != "L",
        "autoreg_gen": shape.variant == "S",
    }
    for key, value in found.items():
        if key in settings.stated and settings.stated[key] != value:
            yield Problem(
                "hypernetwork-invalid", f"{where} {key}", f"{value}", f"{settings.stated[key]!r:.80}, as args.yaml says"
            )
    if shape.latent % 4:
        yield Problem("hypernetwork-invalid", where, f"a latent size of {shape.latent}", "a multiple of 4")
