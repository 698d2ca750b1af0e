"""The one place where transformers opens files: the model's own, without any code of theirs, and nothing is fetched.

A folder may hold more than a model. transformers would put an ``adapter_config.json`` that lies beside the weights on
the model by itself, and would run a ``modeling_*.py`` once the config names it; neither is in the folder that it is
given here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from adaptrix.base.checkpoint import TOKENIZER, matching
from adaptrix.base.file_kinds import INDEX, SAFETENSORS
from adaptrix.errors import RefusedError, refuse
from adaptrix.wording import some

#: what transformers raises for files that it cannot make a model or a tokenizer of
UNLOADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_MODEL = ("config.json", "generation_config.json", SAFETENSORS.single, INDEX, "*" + SAFETENSORS.suffix)
_ADAPTERS = ("adapter_*", "*.adaptrix.safetensors")


@contextmanager
def own_files(folder: Path) -> Iterator[Path]:
    """A folder for a while with links to a model's config and safetensors, and to no other file of ``folder``."""
    foreign = matching(folder, _ADAPTERS)
    with TemporaryDirectory(prefix="adaptrix-") as place:
        for name, path in matching(folder, _MODEL).items():
            if name not in foreign:
                Path(place, name).symlink_to(path.resolve())
        yield Path(place)


def load_config(folder: Path, name: str) -> Any:
    """The config of a model. Raises :class:`RefusedError` for one that transformers has no class for."""
    try:
        return AutoConfig.from_pretrained(folder, **_SAFE)
    except UNLOADABLE as error:
        raise unloadable("base-unusable", name, "its config", error) from None


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer in a folder. Raises :class:`RefusedError` where there is none."""
    if not matching(folder, TOKENIZER):
        remedy = "Put the model's tokenizer.json and tokenizer_config.json beside it."
        raise refuse("tokenizer-missing", name, "there is no tokenizer in it", "a base with its tokenizer", remedy)
    try:
        return AutoTokenizer.from_pretrained(folder, **_SAFE)
    except UNLOADABLE as error:
        raise unloadable("tokenizer-missing", name, "its tokenizer", error) from None


def load_model(kind: Any, folder: Path, **options: Any) -> Any:
    """The model that ``kind.from_pretrained`` loads from the safetensors in a folder; raises as transformers does.

    ``kind``: a model class of transformers, or one of its ``Auto`` classes.
    """
    with own_files(folder) as own, quietly():
        loaded = kind.from_pretrained(own, use_safetensors=True, **_SAFE, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = str(folder)  # the folder of links is gone
    return loaded


def load_whole(kind: Any, folder: Path, name: str, code: str = "base-unusable", unused: str = "") -> Any:
    """The model of a folder in evaluation mode and in its own dtype, with all of its weights from its files.

    ``kind`` as for :func:`load_model`; ``name``, ``code``: of problems; ``unused``: a part of the names of weights that
    may be missing. Raises :class:`RefusedError` for a model that transformers cannot load, or not as a whole.
    """
    try:
        model, info = load_model(kind, folder, dtype="auto", output_loading_info=True)
    except UNLOADABLE as error:
        raise unloadable(code, name, "it", error) from None
    require_whole(info, name, code, unused)
    return model.eval()


def require_whole(info: Mapping[str, Any], name: str, code: str = "base-unusable", unused: str = "") -> None:
    """Raises :class:`RefusedError` where ``info``, of a loading, lists weights that are in no file."""
    missing = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if lacking := [key for key in missing if not unused or unused not in key]:
        found = f"its weights lack {some(lacking, 4)}, and the model would get random ones"
        raise refuse(code, name, found, "the weights of a whole model")


def model_class(config: Any, name: str) -> Any:
    """The model class that a config names, where that is one of transformers' own for this type of config.

    Raises :class:`RefusedError` for any other name: a downloaded config may name anything. Without a name it is the
    class without a head.
    """
    import transformers

    named = (config.architectures or [None])[0]
    if named is None:
        return AutoModel
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config)):
        said = f"its config names the class {str(named)[:80]!r}"
        raise refuse("base-unusable", name, said, f"a model class of transformers for {config.model_type!r}")
    return found


def unloadable(code: str, name: str, what: str, error: Exception) -> RefusedError:
    """The refusal of files that transformers cannot load, in the first line of its own words."""
    if "trust_remote_code" in str(error):
        found = f"transformers cannot load {what} without running Python code that comes with it"
        return refuse(code, name, found, "a model type that transformers knows", "Code of a model is never run here.")
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return refuse(code, name, f"transformers cannot load {what}: {said.strip()}")


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bar of transformers' own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # likewise


def in_fp32(folder: Path, name: str) -> Any:
    """The model of a folder by the class that its config names, in fp32, to be run. Raises :class:`RefusedError`."""
    kind = model_class(load_config(folder, name), name)
    try:
        return load_model(kind, folder, dtype=torch.float32).eval()
    except UNLOADABLE as error:
        raise unloadable("base-unusable", name, "it", error) from None
