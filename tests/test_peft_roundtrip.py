"""peft → injection file → peft gives back what went in, for every family; peft is the judge."""

import pytest

from tests.families import FAMILIES, tiny_model
from tests.peft_models import assert_lossless, everything, save

NATURAL = [(family, 0, 0) for family in FAMILIES]
#: other model types, cross attention, and heads other than the natural one
OTHERS = [
    ("bert", 1, 0),
    ("gpt2", 1, 0),
    ("falcon", 1, 0),
    ("llama", 1, 0),
    ("gemma2", 1, 0),
    ("t5", 2, 0),
    ("opt", 1, 0),
]


@pytest.mark.parametrize(("family", "variant", "head"), NATURAL + OTHERS)
def test_every_family(family, variant, head, tmp_path):
    def build():
        return tiny_model(family, variant=variant, head=head)

    assert_lossless(save(tmp_path, build=build, **everything(family, build())), tmp_path)
