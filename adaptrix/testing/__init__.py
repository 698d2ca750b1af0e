"""The conformance kit for authors of plugins: laws that a family of models must keep, run on tiny models, and
those that an installed plugin must."""

from adaptrix.testing.laws import ArchitectureLaws
from adaptrix.testing.plugin import PluginLaws

__all__ = ["ArchitectureLaws", "PluginLaws"]
