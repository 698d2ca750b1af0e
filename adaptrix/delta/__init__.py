"""Deltas: one change to one weight, and what can be computed from it.

A delta is a product of two thin factors (:class:`LowRank`), a formula that makes such a product of other tensors
(:class:`Parametrised`), a change of a weight's singular values (:class:`Spectral`), or numbers that multiply its rows
or columns (:class:`Scale`); :class:`Delta` is what all answer, and :data:`KINDS` lists them. ΔW is always
``[out, in]``, whatever the module's own layout.
"""

from adaptrix.delta.kinds import KINDS as KINDS
from adaptrix.delta.kinds import not_low_rank as not_low_rank
from adaptrix.delta.kinds import of_class as of_class
from adaptrix.delta.kinds import require_low_rank as require_low_rank
from adaptrix.delta.low_rank import LowRank as LowRank
from adaptrix.delta.low_rank import distance as distance
from adaptrix.delta.low_rank import from_factors as from_factors
from adaptrix.delta.low_rank import fuse as fuse
from adaptrix.delta.low_rank import split as split
from adaptrix.delta.low_rank import stack as stack
from adaptrix.delta.low_rank import straightened as straightened
from adaptrix.delta.parametrised import PARAMETRISATIONS as PARAMETRISATIONS
from adaptrix.delta.parametrised import Parametrised as Parametrised
from adaptrix.delta.parametrised import part_problems as part_problems
from adaptrix.delta.protocol import Delta as Delta
from adaptrix.delta.scale import Scale as Scale
from adaptrix.delta.spectral import Basis as Basis
from adaptrix.delta.spectral import Spectral as Spectral
from adaptrix.delta.spectrum import Matrix as Matrix
from adaptrix.delta.spectrum import Spectrum as Spectrum
from adaptrix.delta.spectrum import Truncation as Truncation
from adaptrix.delta.spectrum import norm as norm
from adaptrix.delta.spectrum import spectrum as spectrum
from adaptrix.delta.spectrum import truncate as truncate
