"""What --verify says of a merge that is right, and of one that is not."""

import json
import sys

import pytest
import torch

import adaptrix
from adaptrix.errors import RefusedError
from adaptrix.merging import product, verify
from adaptrix.merging.draft import draft
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions
from adaptrix.pipeline import Pipeline
from tests.helpers.command_line import placed
from tests.helpers.merge_models import pair


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("family", "dtype", "keys"),
    [
        ("llama", torch.float32, {}),
        ("gpt2", torch.bfloat16, {"use_dora": True}),
        ("t5", torch.float16, {"use_rslora": True}),
        ("bert", torch.bfloat16, {"lora_bias": True}),
    ],
)
def test_a_right_merge(family, dtype, keys, tmp_path):
    made = pair(tmp_path, family, dtype=dtype, **keys)
    found = made.merge(tmp_path / "out", verify=True).agreement
    limit = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.2}[dtype]
    assert found.relative < limit
    assert found.effect > 10 * found.largest
    assert found.top1 > 0.9
    assert 0 <= found.kl < 1e-4


def test_a_wrong_one_is_not_written(tmp_path, monkeypatch):
    made = pair(tmp_path, "gpt2", dtype=torch.bfloat16)
    real = product._product

    def halved(factors, start, stop, *, turned, out):
        real(factors, start, stop, turned=turned, out=out)
        out.mul_(0.5)

    monkeypatch.setattr(product, "_product", halved)
    with pytest.raises(RefusedError, match="merged, the model is another one") as caught:
        made.merge(tmp_path / "out", verify=True)
    assert caught.value.problems[0].code == "not-verified"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_cannot_be_attached_is_not_written_unverified(tmp_path, monkeypatch):
    made = pair(tmp_path, targets=["q_proj"])

    def refusing(*_, **__):
        raise adaptrix.RefusedError(adaptrix.Problem("no-hook", "x", "no module of its own"))

    monkeypatch.setattr(verify, "attach", refusing)
    with pytest.raises(RefusedError) as caught:
        made.merge(tmp_path / "out", verify=True)
    assert [problem.code for problem in caught.value.problems] == ["not-verifiable", "no-hook"]
    assert not (tmp_path / "out").exists()


def test_the_plan_is_verified_too(tmp_path):
    made = pair(tmp_path, targets=["q_proj", "down_proj"])
    file = adaptrix.convert(made.adapter, tmp_path / "x.adaptrix.safetensors", base=made.base, layers="1")
    options = MergeOptions(verify=True)
    done = write(draft(Pipeline(), str(file), str(made.base), options), str(tmp_path / "o"), options)
    assert done.changed == 2
    assert done.agreement.relative < 1e-4


def test_the_command_prints_the_figures(place):
    made = pair(place.folder, targets=["q_proj"])
    code, out, err = place.run("merge", made.adapter, "--base", made.base, "--verify", "-o", "out")
    assert code == 0, err
    assert "verified: logits differ by at most" in out
    assert "top-1 agrees on 100.0% of 96 tokens" in out
    code, out, _ = place.run("merge", made.adapter, "--base", made.base, "--verify", "-o", "again", "--json")
    assert json.loads(out)["agreement"]["tokens"] == 96


def test_without_transformers(place, monkeypatch):
    made = pair(place.folder, targets=["q_proj"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = place.run("merge", made.adapter, "--base", made.base, "--verify", "-o", "out")
    assert code == 2
    assert "transformers is not installed" in err
