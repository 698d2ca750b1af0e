"""Settings that must be there before torch is."""

import os

# Tiny models are many times slower on several threads, and the tests themselves run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
