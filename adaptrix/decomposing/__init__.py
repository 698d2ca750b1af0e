"""Singular value decompositions of a base's weights: computed once, kept, and held to what a spectral delta names."""

from adaptrix.decomposing.cache import Decomposition as Decomposition
from adaptrix.decomposing.cache import SvdCache as SvdCache
from adaptrix.decomposing.known import Known as Known
from adaptrix.decomposing.resolving import require_weight as require_weight
from adaptrix.decomposing.resolving import resolve as resolve
from adaptrix.decomposing.resolving import spectral as spectral
from adaptrix.decomposing.svd import BACKEND as BACKEND
from adaptrix.decomposing.svd import decompose as decompose
from adaptrix.decomposing.svd import tensor_hash as tensor_hash
