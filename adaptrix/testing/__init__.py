"""The conformance kit for authors of plugins: laws of a family of models, run on tiny models, and laws of an
installed plugin."""

from adaptrix.testing.laws import ArchitectureLaws
from adaptrix.testing.plugin import PluginLaws

__all__ = ["ArchitectureLaws", "PluginLaws"]
