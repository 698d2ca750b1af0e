"""Deltas: one change to one weight, and what can be computed from it.

A delta is a product of two thin factors (:class:`LowRank`) or a change of a weight's singular values
(:class:`Spectral`). ΔW is always ``[out, in]``, whatever the module's own layout.
"""

from adaptrix.delta.kinds import Delta as Delta
from adaptrix.delta.kinds import require_low_rank as require_low_rank
from adaptrix.delta.low_rank import LowRank as LowRank
from adaptrix.delta.low_rank import Matrix as Matrix
from adaptrix.delta.low_rank import Spectrum as Spectrum
from adaptrix.delta.low_rank import distance as distance
from adaptrix.delta.low_rank import from_factors as from_factors
from adaptrix.delta.low_rank import fuse as fuse
from adaptrix.delta.low_rank import norm as norm
from adaptrix.delta.low_rank import spectrum as spectrum
from adaptrix.delta.low_rank import split as split
from adaptrix.delta.low_rank import stack as stack
from adaptrix.delta.low_rank import straightened as straightened
from adaptrix.delta.low_rank import truncate as truncate
from adaptrix.delta.spectral import Basis as Basis
from adaptrix.delta.spectral import Spectral as Spectral
from adaptrix.delta.spectral import Truncation as Truncation
