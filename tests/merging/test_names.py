"""Merges of adapters that name modules as other versions and other trees do. peft's own merge is the judge."""

import pytest

from adaptrix.errors import RefusedError
from tests.helpers.merge_models import assert_equal_bits, pair
from tests.helpers.other_families import qwen2_vl
from tests.helpers.peft_models import rewrite

_PARTS = r".*language_model.*(q_proj|down_proj)"


def respelled(folder, old, new):
    rewrite(folder, lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()})


@pytest.mark.parametrize("older", ["model.layers.", "language_model.model.layers."])
def test_older_names(older, tmp_path):
    made = pair(tmp_path, build=qwen2_vl, target_modules=_PARTS)
    respelled(made.adapter, "model.language_model.layers.", older)
    rewrite(made.adapter, target_modules=["q_proj", "down_proj"])
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


def test_an_adapter_of_a_model_of_pictures_into_its_language_model(tmp_path):
    made = pair(tmp_path, "qwen3", targets=["q_proj", "down_proj"])
    respelled(made.adapter, "model.layers.", "model.language_model.layers.")
    rewrite(made.adapter, target_modules=_PARTS)
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


def test_modules_that_the_base_lacks_under_every_name(tmp_path):
    made = pair(tmp_path, "qwen3", targets=["q_proj"])
    respelled(made.adapter, "model.layers.", "model.visual.blocks.")
    rewrite(made.adapter, target_modules=["q_proj"])
    with pytest.raises(RefusedError) as refused:
        made.merge(tmp_path / "out")
    assert {problem.code for problem in refused.value.problems} == {"site-missing"}
    assert not (tmp_path / "out").exists()
