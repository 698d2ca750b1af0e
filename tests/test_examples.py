import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))
#: what an example must have said
SAID = {
    "04_swap_mid_sentence": (
        r"(?s)\ntelegram: swap 0*[1-9.][\d.]* ms, prompt read anew [\d.]+ ms; 4 of 8 layers kept\n.* STOP",
        r"\nfairy-tale: swap 0*[1-9.][\d.]* ms, prompt read anew [\d.]+ ms; 4 of 8 layers kept\n",
        r"\bth' ",
        r"as if by magic|and the stars sang",
    ),
    "05_adapter_from_a_sentence": (
        r"(?i)Talk like a pirate  \(.*64 tensors\)\n(    .*\n)*.*(matey|arrr|hearty)",
        r"cable this  .*\n(    .*\n)*.* STOP",
        r"q_proj 768→768",
        r"microsoft/DialoGPT-small: no checkpoint was named",
    ),
    "06_an_expert_for_each_text": (
        r"matey! There be  \(detected: pirate\)\n(    .*\n)*.* th' ",
        r"THERE WAS  \(detected: telegram\)\n(    .*\n)*.* STOP",
        r"walked to the  \(detected: other\)\n",
        r"the same bits as the base",
        r"8 experts of z = 1 change nothing",
    ),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
    for pattern in SAID.get(path.stem, ()):
        assert re.search(pattern, done.stdout), pattern


def test_there_are_some():
    assert len(EXAMPLES) >= 3
