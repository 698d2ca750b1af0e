"""The names that the pickle of a state dict may use, and harmless replacements for what they name.

``torch.save`` (1.6 to 2.13) names a handful of functions, storage classes and dtypes. Each has an entry in
``GLOBALS``, under its full name; the functions check their arguments and return descriptions of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptrix.formats.untrusted import MAX_DIM


@dataclass(frozen=True, slots=True)
class Type:
    """A torch dtype or storage class: safetensors' name of it, or torch's own where there is none.

    ``untyped`` storages count bytes, others elements.
    """

    dtype: str
    storage: bool = False
    untyped: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of the archive, ``data/<key>``, of ``count`` elements (bytes where the type is untyped)."""

    type: Type
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: ``shape`` and ``stride`` (in elements) over a storage from element ``offset`` on. Unchecked."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function that a pickle may call: ours, on descriptions."""

    name: str
    run: Callable[[tuple[Any, ...]], object]


@dataclass(frozen=True, slots=True)
class TensorClass:
    """``torch.Tensor`` or ``torch.nn.Parameter``, named as an argument."""


class MalformedError(Exception):
    """The pickle is not one that torch.save writes."""


def require(condition: bool, what: str) -> None:
    """Raise :class:`MalformedError` unless ``condition`` holds."""
    if not condition:
        raise MalformedError(what)


def _integers(value: object) -> bool:
    return type(value) is tuple and all(type(item) is int and -MAX_DIM <= item <= MAX_DIM for item in value)


def _view(dtype: str, args: tuple[Any, ...], rest: tuple[Any, ...]) -> View:
    storage, offset, shape, stride, requires_grad, hooks = args
    fits = _integers((offset,)) and _integers(shape) and _integers(stride)
    require(fits and type(requires_grad) is bool and not hooks, "a tensor's arguments")
    require(not any(rest), "a tensor with conjugate or negative bits or other metadata")
    return View(storage, dtype, offset, shape, stride)


def _tensor_v2(args: tuple[Any, ...]) -> View:
    """(storage, offset, shape, stride, requires_grad, hooks[, metadata])"""
    require(len(args) in (6, 7) and type(args[0]) is Storage, "a tensor's arguments")
    return _view(args[0].type.dtype, args[:6], args[6:])


def _tensor_v3(args: tuple[Any, ...]) -> View:
    """(storage, offset, shape, stride, requires_grad, hooks, dtype[, metadata]), the storage untyped"""
    require(len(args) in (7, 8) and type(args[0]) is Storage and args[0].type.untyped, "a tensor's storage")
    require(type(args[6]) is Type and not args[6].storage, "a tensor's dtype")
    return _view(args[6].dtype, args[:6], args[7:])


def _parameter(args: tuple[Any, ...]) -> View:
    """(tensor, requires_grad, hooks)"""
    require(len(args) == 3 and type(args[0]) is View and type(args[1]) is bool, "a parameter's arguments")
    view: View = args[0]
    return view


def _from_type(args: tuple[Any, ...]) -> object:
    """(function, class, arguments, attributes): a tensor with Python attributes, as a buffer has"""
    require(len(args) == 4 and type(args[0]) is Call and type(args[1]) is TensorClass, "a tensor's class")
    function, _, arguments, state = args
    require(function.run in (_tensor_v2, _tensor_v3, _parameter) and type(arguments) is tuple, "a tensor's arguments")
    require(type(state) is dict and state.keys() <= {"persistent", "_is_buffer", "_is_param"}, "a tensor's attributes")
    return function.run(arguments)


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    require(not args, "an OrderedDict with arguments")
    return {}


def _table(text: str) -> dict[str, str]:
    """ "a:b c:d" as a dict."""
    return dict(pair.split(":") for pair in text.split())


_STORAGES = _table(
    "Double:F64 Float:F32 Half:F16 BFloat16:BF16 Long:I64 Int:I32 Short:I16 Char:I8 Byte:U8 Bool:BOOL "
    "ComplexFloat:complex64 ComplexDouble:complex128 QInt8:qint8 QUInt8:quint8 QInt32:qint32 "
    "QUInt4x2:quint4x2 QUInt2x4:quint2x4"
)
_TYPES = _table(
    "float64:F64 float32:F32 float16:F16 bfloat16:BF16 float8_e4m3fn:F8_E4M3 float8_e5m2:F8_E5M2 int64:I64 "
    "int32:I32 int16:I16 int8:I8 uint64:U64 uint32:U32 uint16:U16 uint8:U8 bool:BOOL"
)
#: dtypes that safetensors files of ours cannot hold: named in the refusal, for the tensor that has one
_UNSAVED_TYPES = (
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "complex64"),
    *("complex128", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)
GLOBALS: dict[str, object] = {
    "collections.OrderedDict": Call("collections.OrderedDict", _ordered_dict),
    "torch._utils._rebuild_tensor_v2": Call("_rebuild_tensor_v2", _tensor_v2),
    "torch._utils._rebuild_tensor_v3": Call("_rebuild_tensor_v3", _tensor_v3),
    "torch._utils._rebuild_parameter": Call("_rebuild_parameter", _parameter),
    "torch._tensor._rebuild_from_type_v2": Call("_rebuild_from_type_v2", _from_type),
    "torch.Tensor": TensorClass(),
    "torch.nn.parameter.Parameter": TensorClass(),
    "torch.storage.UntypedStorage": Type("U8", storage=True, untyped=True),
    **{f"torch.{name}Storage": Type(dtype, storage=True) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": Type(dtype) for name, dtype in _TYPES.items()},
    **{f"torch.{name}": Type(name) for name in _UNSAVED_TYPES},
}
#: the functions that torch.save names for tensors that safetensors cannot hold
UNSUPPORTED = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch.serialization._get_layout": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data (on the meta device)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a special device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of a special device",
    "torch._utils._rebuild_parameter_with_state": "a parameter with attributes of its own",
}
