"""What a family of models looks like: roles, sites, dims, and how fused weights lie. Data, not code."""

from adaptrix.architecture.family import Architecture as Architecture
from adaptrix.architecture.family import Layout as Layout
from adaptrix.architecture.family import Orientation as Orientation
from adaptrix.architecture.family import Role as Role
from adaptrix.architecture.family import Site as Site
