"""The conformance kit for authors of plugins: laws that a family of models must keep, run on tiny models."""

from adaptrix.testing.laws import ArchitectureLaws

__all__ = ["ArchitectureLaws"]
