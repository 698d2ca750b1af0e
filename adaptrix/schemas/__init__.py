"""The shapes of everything that ``--json`` prints and ``as_dict`` gives, each written down once.

A shape is a ``TypedDict``: mypy holds the code that fills it in to it, :mod:`adaptrix.schemas.json_schema` makes a JSON
Schema of it, which tests hold real outputs to, and ``docs/json.md`` is generated from the same.
"""

from __future__ import annotations

#: of the documents; it grows when a field is renamed, removed or changes its meaning, and not when one is added
VERSION = 1
