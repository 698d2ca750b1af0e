"""The plugin that Adaptrix itself is: what it ships comes through the same hooks as everybody's."""

from __future__ import annotations

from collections.abc import Iterator

from adaptrix import model_card
from adaptrix.architecture import Architecture
from adaptrix.architecture.dialect import Dialect
from adaptrix.architecture.dialect_file import read_dialects
from adaptrix.architecture.registry import builtin_folder, read_architectures
from adaptrix.feature_names import FEATURES, LORA
from adaptrix.formats import gguf, injection, injection_read, mlx, peft_config, peft_read, peft_write
from adaptrix.plugins.hookspecs import hookimpl
from adaptrix.records import Format, Source
from adaptrix.sources import hub, local


@hookimpl
def adaptrix_architectures() -> Iterator[Architecture]:
    """The families in ``registry/``."""
    return read_architectures(builtin_folder())


@hookimpl
def adaptrix_dialects() -> Iterator[Dialect]:
    """The tables in ``registry/dialects/``."""
    return read_dialects(builtin_folder() / "dialects")


@hookimpl
def adaptrix_formats() -> Iterator[Format]:
    """The injection file first: it is what a renamed file is tried as."""
    yield Format(
        name="injection",
        patterns=(("*" + injection.SUFFIX,),),
        detect=injection.detect,
        read=injection_read.read,
        write=injection.write,
        suffix=injection.SUFFIX,
        carries=frozenset(FEATURES),
    )
    yield Format(
        name="mlx",
        patterns=((mlx.WEIGHTS,), (mlx.CONFIG,)),
        detect=mlx.detect,
        read=mlx.read,
        write=mlx.write,
        writes=(mlx.CONFIG, mlx.WEIGHTS),
        carries=mlx.CARRIES,
    )
    yield Format(
        name="gguf",
        patterns=(("*" + gguf.SUFFIX,),),
        detect=gguf.detect,
        read=gguf.read,
        write=gguf.write,
        suffix=gguf.SUFFIX,
        carries=gguf.CARRIES,
        sniff=gguf.sniff,
    )
    yield Format(
        name="peft",
        patterns=(("adapter_config.json",), peft_read.WEIGHTS),
        detect=peft_read.detect,
        read=peft_read.read,
        write=peft_write.write,
        writes=(peft_config.CONFIG_NAME, peft_read.WEIGHTS[0], model_card.NAME),
        carries=LORA | {"parametrised", "scales"},
    )


@hookimpl
def adaptrix_sources() -> Iterator[Source]:
    """The disk first: a name that exists both as a folder and on the hub is the folder."""
    yield local.SOURCE
    yield hub.SOURCE
