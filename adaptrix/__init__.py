"""Adaptrix takes a model adapter from anywhere, knows what is in it, fits it to a model, and proves the result.

The names are in ``__init__.pyi``, and imported when they are first used, so that ``import adaptrix`` costs nothing.
"""

from adaptrix.exports import lazy_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(__name__, renamed={"Report": "CheckReport"})
