"""Settings that must be there before torch is."""

import os
import signal

# Tiny models are many times slower on several threads, and the tests themselves run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings  # the environment comes first

# CI judges a change, not the luck of the draw; everywhere else each run tries something new.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# What a shell puts into the background ignores these, and so would the processes that tests start and interrupt.
for number, ordinary in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, ordinary)
