"""The tiny bases of :mod:`tests.runtimes.cases` in GGUF, by the converter in llama.cpp's own source.

    python -m tests.runtimes.llamacpp_bases SOURCE FOLDER

SOURCE is the unpacked source distribution of llama-cpp-python.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.runtimes.cases import FAMILIES

_VOCABULARY = 97


def main(source: Path, folder: Path) -> None:
    """Writes FOLDER/<family>.gguf for every family."""
    root = next(source.glob("**/vendor/llama.cpp"))
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    converter = _patched()
    for family in FAMILIES:
        _add_tokenizer(folder / family)
        out = str(folder / f"{family}.gguf")  # the name, else the folder's, tells llama.cpp of tokens to look for
        sys.argv = ["", str(folder / family), "--outfile", out, "--outtype", "f32", "--model-name", "tiny"]
        try:
            converter.main()
        except SystemExit as ended:
            if ended.code:
                raise


def _patched() -> Any:
    """The converter, which knows the tokenizers of published models alone, taking any."""
    import conversion
    from conversion import base

    for module in pkgutil.iter_modules(conversion.__path__):
        importlib.import_module(f"conversion.{module.name}")
    for kind in _subclasses(base.TextModel):
        if "set_vocab" in vars(kind):
            kind.set_vocab = lambda self: self._set_vocab_gpt2()
    for kind in (base.TextModel, *_subclasses(base.TextModel)):
        if "get_vocab_base_pre" in vars(kind):
            kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    return importlib.import_module("convert_hf_to_gguf")


def _subclasses(kind: type) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _add_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters, and one merge: llama.cpp wants some."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())[: _VOCABULARY - len(special) - 1]
    names = [*special, *characters, characters[0] + characters[1]]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(characters[0], characters[1])]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
