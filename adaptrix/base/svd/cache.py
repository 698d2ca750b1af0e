"""Decompositions on disk, by the hash of the weight: each is computed once, also by an interrupted run.

An entry is a safetensors file of U, S (fp64) and Vᵀ whose metadata holds the digest of all three. One that is damaged
is computed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from adaptrix import atomic
from adaptrix.base.svd.lapack import BACKEND, decompose, require_matrix, tensor_hash
from adaptrix.errors import RefusedError, refuse
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """U ``[out, k]`` and Vᵀ ``[k, in]`` in fp32, S ``[k]`` in fp64."""

    U: Tensor
    S: Tensor
    Vt: Tensor

    @property
    def digest(self) -> str:
        """SHA-256 of all the bytes."""
        return sha256("".join(map(tensor_hash, (self.U, self.S, self.Vt))).encode()).hexdigest()

    def of_shape(self, out: int, inp: int) -> bool:
        """True where dtypes and shapes are those of the decomposition of a weight ``[out, in]``."""
        k = min(out, inp)
        expected = [("F32", (out, k)), ("F64", (k,)), ("F32", (k, inp))]
        return [(tensor.dtype, tensor.shape) for tensor in (self.U, self.S, self.Vt)] == expected


def default_folder() -> Path:
    """``$ADAPTRIX_CACHE``, or ``adaptrix`` in the user's cache folder."""
    if own := os.environ.get("ADAPTRIX_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "adaptrix")


class SvdCache:
    """Decompositions in a folder, ``svd`` in :func:`default_folder` unless another is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() / "svd" if folder is None else folder

    def svd(self, weight: Tensor, *, turned: bool = False, where: str = "weight") -> Decomposition:
        """The decomposition of a weight as ``[out, in]``; ``turned``: it is stored ``[in, out]`` (Conv1D).

        Raises :class:`RefusedError` for a tensor that is no matrix, and where the folder cannot be written.
        """
        require_matrix(weight.shape, where)
        path = self.path(weight, turned=turned)
        out, inp = weight.shape[::-1] if turned else weight.shape
        found = _read(path)
        if found is None or not found.of_shape(out, inp):
            numbers = weight.float32()
            U, S, Vt = decompose(numbers.T if turned else numbers, where)
            self._write(path, Decomposition(Tensor.of(U), Tensor.of(S), Tensor.of(Vt)))
            found = _read(path)
        if found is None:
            raise refuse(
                "system", path, "the entry is damaged although it has just been written", remedy="Check the disk."
            )
        return found

    def path(self, weight: Tensor, *, turned: bool = False) -> Path:
        """The path of a weight's entry."""
        shape = "x".join(map(str, weight.shape))
        return self.folder / f"{tensor_hash(weight)}-{weight.dtype}-{shape}{'t' * turned}-{BACKEND}.safetensors"

    def _write(self, path: Path, entry: Decomposition) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            found, remedy = f"it cannot be made ({error.strerror})", "Name another with ADAPTRIX_CACHE."
            raise refuse("system", self.folder, found, "a folder for decompositions", remedy) from None
        tensors = {"U": entry.U, "S": entry.S, "Vt": entry.Vt}
        with atomic.output(path, force=True) as work:
            safetensors_file.write(work, tensors, {"sha256": entry.digest})


def _read(path: Path) -> Decomposition | None:
    """An entry; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = safetensors_file.read(path)
    except RefusedError:  # it can be computed again
        return None
    if tensors.keys() != {"U", "S", "Vt"}:
        return None
    found = Decomposition(**tensors)
    return found if metadata.get("sha256") == found.digest else None
