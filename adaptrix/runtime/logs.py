"""The logger of sessions. Nothing is said unless the user configures logging for ``adaptrix``.

INFO: load, unload, activate, swap, detach. DEBUG: use, route, generate, threads, and pages into and out of slots.
"""

from __future__ import annotations

import logging

logging.getLogger("adaptrix").addHandler(logging.NullHandler())
LOG = logging.getLogger("adaptrix.session")
