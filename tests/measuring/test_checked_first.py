"""What is wrong with a command line is said before torch is imported, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from adaptrix.measuring.options import FidelityOptions, require_options

TINY = Path(__file__).parents[2] / "examples" / "tiny"
RUN = """
import sys
from adaptrix.cli import run
code = run(sys.argv[1:])
print(code, *sorted({"torch", "transformers"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "energy:99"], "99 layers of 8"),
        (["--layers", "middle", "--layers", "midle"], "Did you mean middle?"),
        (["--dtype", "fp8", "--window", "1"], "one of fp64, fp32, fp16, bf16"),
        (["--text", "no-such-text"], "there is no such file"),
        (["--base", str(TINY / "bsae"), "--layers", "middle"], "Did you mean"),
    ],
)
def test_without_torch(more, said):
    line = ["fidelity", TINY / "adapters/pirate", "--base", TINY / "base", "--text", __file__, *more]
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, line)], capture_output=True, text=True)
    assert said in done.stderr
    assert done.stdout == "2\n"


def test_every_wrong_option_at_once():
    with pytest.raises(Exception, match=r"(?s)dtype.*seed.*window"):
        require_options(FidelityOptions(dtype="int8", seed=-1, window=1))
