"""All that a plugin may use of Adaptrix beside :mod:`adaptrix` itself; everything else may change with any version.

The names are in ``extend.pyi``, by what they are for, and imported when they are first used: a plugin that adds a
command imports torch when the command runs.
"""

from adaptrix.exports import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
