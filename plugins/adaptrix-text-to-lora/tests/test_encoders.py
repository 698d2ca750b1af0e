"""Text encoders, and what a prompt must be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from adaptrix_text_to_lora import HashedNgrams, ModelStates
from adaptrix_text_to_lora.encoders import scaled
from adaptrix_text_to_lora.prompts import adapter_name, formatted, read_prompts, require_prompts
from transformers import AutoModel, AutoTokenizer

import adaptrix

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Add numbers", "Add numbers."),
        (" Add. ", "Add."),
        ("Add 7", "Add 7"),
        ("数を足す", "数を足す."),
        ("Añadé", "Añadé."),
    ],
)
def test_a_full_stop_is_added_after_a_letter(text: str, expected: str) -> None:
    assert formatted(text) == expected


def test_every_bad_prompt_is_told_at_once() -> None:
    bad = ["", " \n\t", "a\x00b", "red \x1b[31m", "half \ud800", "word " * 10_000, 7]
    with pytest.raises(adaptrix.RefusedError) as error:
        require_prompts(["Add.", *bad])  # type: ignore[list-item]
    assert [problem.code for problem in error.value.problems] == [
        *["prompt"] * 2,
        *["prompt"] * 3,
        "prompt",
        "prompt",
    ]
    assert all(str(problem).isprintable() for problem in error.value.problems)


def test_prompts_are_made_once_and_named_apart() -> None:
    assert require_prompts(["Add", "Sub", "Add."]) == ["Add.", "Sub."]
    names = [adapter_name(text) for text in ("Add.", "Add!", "数を足す.", "?!", "../../etc", "a" * 500)]
    assert len(set(names)) == 6
    assert names[0].startswith("add-")
    assert all("/" not in name and len(name.encode()) < 200 for name in names)


def test_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffAdd\r\n\n Übersetze \n".encode())
    assert require_prompts(read_prompts(file)) == ["Add.", "Übersetze."]
    file.write_bytes(b"\xff\xfe\x00")
    for path in (file, tmp_path, tmp_path / "none"):
        with pytest.raises(adaptrix.AdaptrixError):
            read_prompts(path)


_HASH = """
import hashlib
from adaptrix_text_to_lora import HashedNgrams
print(hashlib.sha256(HashedNgrams(64)("Añade números, 数を足す.").numpy().tobytes()).hexdigest())
"""


def test_hashed_ngrams_are_the_same_in_every_process() -> None:
    here = sha256(HashedNgrams(64)("Añade números, 数を足す.").numpy().tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", _HASH], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == here


def test_hashed_ngrams_know_spelling() -> None:
    encoder = HashedNgrams(512)
    one, near, far = (
        scaled(encoder(text), encoder) for text in ("Add two numbers.", "Adding numbers.", "Tell a joke.")
    )
    assert float(one.norm()) == pytest.approx(512**0.5)
    assert one @ near > 3 * (one @ far).abs()
    assert encoder("!").any(), "a text without a word has an embedding too"


class _Odd:
    name, width = "odd", 3

    def __init__(self, *numbers: float) -> None:
        self._numbers = numbers

    def __call__(self, text: str, /) -> torch.Tensor:
        return torch.tensor(self._numbers)


@pytest.mark.parametrize("numbers", [(0.0, 0.0, 0.0), (1.0, float("nan"), 0.0), (1.0, 2.0)])
def test_an_embedding_without_direction_is_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(adaptrix.RefusedError):
        scaled(_Odd(*numbers)("x"), _Odd(*numbers))


def test_a_models_states_are_pooled_as_said(tmp_path: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModel.from_pretrained(BASE).eval()
    ids = tokenizer("Solve it step by step.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(ids).last_hidden_state[0].float()
    expected = {"last": states[-1], "cls": states[0], "mean": states.mean(0)}
    for pooling, wanted in expected.items():
        encoder = ModelStates(str(BASE), pooling)  # type: ignore[arg-type]
        torch.testing.assert_close(encoder("Solve it step by step."), wanted)
        assert encoder.width == 128


def test_a_sentence_embedding_folder_says_how_it_pools(tmp_path: Path) -> None:
    for file in BASE.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(adaptrix.UsageError, match="pooling="):
        ModelStates(str(tmp_path))
    (tmp_path / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    text = "Zähle rückwärts."
    assert torch.equal(ModelStates(str(tmp_path))(text), ModelStates(str(BASE), "mean")(text))


def test_what_a_model_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(adaptrix.RefusedError, match="tokens; expected 1 to 512, which is what"):
        ModelStates(str(BASE), "last")("one two three " * 300)
    for name in (str(tmp_path / "none"), str(BASE / "config.json")):
        with pytest.raises(adaptrix.UsageError):
            ModelStates(name, "last")
    (tmp_path / "config.json").write_text((BASE / "config.json").read_text())
    with pytest.raises(adaptrix.RefusedError, match="there is no tokenizer in it"):
        ModelStates(str(tmp_path), "last")
    for file in BASE.glob("*token*.json"):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(adaptrix.RefusedError, match="transformers cannot load it"):
        ModelStates(str(tmp_path), "last")
