"""The hypernetwork that ships for the tiny base: unseen sentences give the style that they ask for, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adaptrix_text_to_lora import TextToLoRA
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import adaptrix
from adaptrix import cli
from examples.tiny.descriptions import VOICES
from examples.tiny.text_to_lora import BASE, OUT, Loss, losses
from tests.helpers.json_documents import document


@pytest.fixture(scope="module")
def loss() -> Iterator[Loss]:
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    with adaptrix.attach(model, {}) as session:
        yield losses(model, tokenizer, session)


def test_no_sentence_that_is_kept_was_trained_on() -> None:
    trained = {text.casefold() for verbosity in VOICES for text in verbosity.trained}
    held_out = [text.casefold() for verbosity in VOICES for text in verbosity.held_out]
    assert len(VOICES) >= 8
    assert min(len(verbosity.trained) for verbosity in VOICES) >= 16
    assert trained.isdisjoint(held_out)


@pytest.mark.parametrize("at", range(len(VOICES)), ids=[verbosity.style.name for verbosity in VOICES])
def test_an_unseen_sentence_gives_its_style_and_another_ones_does_not(at: int, loss: Loss) -> None:
    """The loss on the style's own text, unseen too: clearly under the base's and under a mismatched sentence's."""
    generator, verbosity = TextToLoRA(base=BASE), VOICES[at]
    base = loss(verbosity.style, None)
    own = max(loss(verbosity.style, generator.generate(text)) for text in verbosity.held_out[:2])
    mismatched = [VOICES[(at + step) % len(VOICES)].held_out[0] for step in (1, 4)]
    other = min(loss(verbosity.style, generator.generate(text)) for text in mismatched)
    assert own < 0.75 * other
    assert own < (0.8 * base if verbosity.style.steps else base), "plain text is what the base writes anyway"


def test_the_command_needs_no_checkpoint_where_the_base_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["generate", "talk like a pirate", "--base", str(BASE), "--json"]) == 0
    (said,) = document(capsys.readouterr().out, 0)["results"]
    assert (said["encoder"], said["tensors"]) == ("hashed", 64)
    named, found = (TextToLoRA(checkpoint, BASE).generate("talk like a pirate") for checkpoint in (OUT, None))
    for target, delta in adaptrix.load(tmp_path / said["path"]).deltas.items():
        assert delta.B.tobytes() == named.deltas[target].B.tobytes() == found.deltas[target].B.tobytes()
