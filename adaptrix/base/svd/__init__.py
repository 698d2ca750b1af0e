"""Singular value decompositions of a base's weights: computed once, kept, and checked against what a spectral delta
records."""

from adaptrix.base.svd.cache import Decomposition as Decomposition
from adaptrix.base.svd.cache import SvdCache as SvdCache
from adaptrix.base.svd.known import Known as Known
from adaptrix.base.svd.lapack import BACKEND as BACKEND
from adaptrix.base.svd.lapack import decompose as decompose
from adaptrix.base.svd.lapack import tensor_hash as tensor_hash
from adaptrix.base.svd.resolving import require_weight as require_weight
from adaptrix.base.svd.resolving import resolve as resolve
from adaptrix.base.svd.resolving import spectral_delta as spectral_delta
