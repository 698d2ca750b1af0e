"""Names of dtypes: those of safetensors, of numpy and torch, and the short ones that people type."""

from __future__ import annotations

from collections.abc import Sequence

from adaptrix.errors import Problem
from adaptrix.wording import nearest

_KNOWN = {
    "F64": ("f64", "fp64", "float64", "double"),
    "F32": ("f32", "fp32", "float32", "float", "single"),
    "F16": ("f16", "fp16", "float16", "half"),
    "BF16": ("bf16", "bfloat16"),
    "F8_E4M3": ("f8", "fp8", "float8", "e4m3", "f8_e4m3", "fp8_e4m3", "float8_e4m3"),
    "F8_E5M2": ("e5m2", "f8_e5m2", "fp8_e5m2", "float8_e5m2"),
}
_NAMED = {name: dtype for dtype, names in _KNOWN.items() for name in names}


def spelled(dtype: str) -> str:
    """A dtype by the short name that people type: ``fp32`` for ``F32``; :func:`dtype_name` the other way."""
    return f"fp{dtype[1:].lower()}" if dtype.startswith("F") else dtype.lower()


def dtype_name(name: object) -> str:
    """A dtype as safetensors names it: ``bfloat16``, ``bf16`` and ``torch.bfloat16`` are ``BF16``.

    ``fp8`` is ``F8_E4M3``, the one that has more digits. A name that is unknown stays as it is, in capitals.
    """
    plain = str(name).lower().removeprefix("torch.").replace("-", "_")
    return _NAMED.get(plain.removesuffix("fn"), plain.upper())


def dtype_problems(dtype: object, allowed: Sequence[str]) -> list[Problem]:
    """A problem for a dtype that is none of those allowed; none for None, which asks for none."""
    if dtype is None or dtype_name(dtype) in allowed:
        return []
    words = [spelled(each) for each in allowed]
    said = repr(dtype) if isinstance(dtype, str) else str(dtype)
    remedy = nearest(str(dtype), (name for each in allowed for name in _KNOWN[each]))
    return [Problem("option", "dtype", said[:80], f"one of {', '.join(words)}", remedy)]
