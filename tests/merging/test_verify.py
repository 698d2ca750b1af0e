"""What --verify says of a merge that is right, and of one that is not."""

import json
import sys

import pytest
import torch
import transformers

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
    assert caught.value.problems[0].code == "verification-failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_cannot_be_attached_is_not_written_unverified(tmp_path, monkeypatch):
    made = pair(tmp_path, targets=["q_proj"])

    def refusing(*_, **__):
        raise adaptrix.RefusedError(adaptrix.Problem("module-unsupported", "x", "no module of its own"))

    monkeypatch.setattr(verify, "attach", refusing)
    with pytest.raises(RefusedError) as caught:
        made.merge(tmp_path / "out", verify=True)
    assert [problem.code for problem in caught.value.problems] == ["verification-impossible", "module-unsupported"]
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
    assert "verified against the base with the adapter attached, plan all: logits differ by at most" in out
    assert "top-1 agrees on 100.0% of 96 tokens" in out
    code, out, _ = place.run("merge", made.adapter, "--base", made.base, "--verify", "-o", "again", "--json")
    assert json.loads(out)["agreement"]["tokens"] == 96


def test_without_transformers(place, monkeypatch):
    made = pair(place.folder, targets=["q_proj"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = place.run("merge", made.adapter, "--base", made.base, "--verify", "-o", "out")
    assert code == 2
    assert "transformers is not installed" in err


_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
_TEXT = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _clip(kind):
    vision, text = _VISION | {"patch_size": 8}, _TEXT | _ENDS | {"max_position_embeddings": 16}
    own = {"CLIP": {"projection_dim": 12}, "Siglip": {}}[kind]
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **own)
    return getattr(transformers, f"{kind}Model")(config)


def _whisper():
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("ffn_dim", 48), ("layers", 2), ("attention_heads", 4))
    }
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(vocab_size=96, d_model=32, num_mel_bins=8, max_source_positions=10,
                                   max_target_positions=32, decoder_start_token_id=1, **sizes, **_ENDS)
    )  # fmt: skip


def _wav2vec2():
    return transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                    num_attention_heads=4, conv_dim=[16, 16], conv_kernel=[8, 4], conv_stride=[4, 4],
                                    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    )  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [lambda: _clip("CLIP"), lambda: _clip("Siglip"), _whisper, _wav2vec2],
    ids=["clip", "siglip", "whisper", "wav2vec2"],
)
def test_models_of_pictures_and_sound_are_verified_on_what_they_read(build, tmp_path):
    found = pair(tmp_path, build=build, targets=["q_proj", "v_proj"]).merge(tmp_path / "out", verify=True).agreement
    assert found.effect > 10 * found.largest
    assert found.relative < 1e-3
