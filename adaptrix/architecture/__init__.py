"""Families of models as data, not code: roles, sites, dims, and the layouts of fused weights."""

from adaptrix.architecture.family import Architecture as Architecture
from adaptrix.architecture.family import Layout as Layout
from adaptrix.architecture.family import Orientation as Orientation
from adaptrix.architecture.family import Role as Role
from adaptrix.architecture.family import Site as Site
