"""From a sentence to an adapter that takes the ordinary road, held to peft; and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import adaptrix_text_to_lora
import peft
import pytest
import torch
from adaptrix_text_to_lora import Hypernetwork, TextToLoRA, shape_for
from adaptrix_text_to_lora.shape import Variant
from transformers import AutoModelForCausalLM, AutoTokenizer

import adaptrix
from adaptrix import Catalog
from tests.helpers.families import FAMILIES, tiny_model

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
TEXT = "Solve grade-school maths step by step"
Trained, Written = Callable[..., Hypernetwork], Callable[..., Path]


@pytest.fixture
def checkpoint(trained: Trained, written: Written, tmp_path: Path) -> Path:
    return written(tmp_path / "t2l", trained(shape_for(str(BASE), "M", 128, latent=16)))


def _logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": torch.tensor([[3, 5, 7]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[3, 5, 7, 9, 11]]), **more).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_delta_where_every_family_has_its_queries_and_values(
    family: str, trained: Trained, written: Written, tmp_path: Path
) -> None:
    """Attached, and through peft from the folder that is written, the adapter does one and the same."""
    model = tiny_model(family, 0)
    model.save_pretrained(tmp_path / "base")
    shape = shape_for(str(tmp_path / "base"), "L", 16, rank=3, latent=8)
    folder = written(tmp_path / "t2l", trained(replace(shape, head_in=12)))
    adapter = TextToLoRA(folder, tmp_path / "base", "hashed").generate(TEXT)
    report = adaptrix.check(adapter, tmp_path / "base")
    assert report.ok, report.problems
    assert {delta.scale for delta in adapter.deltas.values()} == {6 / 3**0.5}
    plain = _logits(model)
    with adaptrix.attach(model, {"maths": adapter}) as session, session.use("maths"):
        attached = _logits(model)
    assert (attached - plain).abs().max() > 1e-3
    out = adaptrix.convert(adapter, tmp_path / "out", to="peft", base=tmp_path / "base")
    wrapped = peft.PeftModel.from_pretrained(model, out)
    torch.testing.assert_close(_logits(wrapped), attached, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "roles", "said"),
    [
        ("gpt2", ("q", "qkv"), "qkv is named twice"),
        ("llama", ("q", "q_proj"), "q is named twice"),
        ("llama", ("banana",), "it has no banana; expected one of q, k"),
        ("mixtral", ("expert_down",), "of experts"),
        ("llama", ("embed",), "is outside the layers"),
        ("t5", ("encoder_q", "decoder_v"), "decoder_layers and encoder_layers"),
    ],
)
def test_targets_that_cannot_be_served_are_refused_by_name(
    family: str, roles: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    tiny_model(family, 0).config.save_pretrained(tmp_path)
    with pytest.raises(adaptrix.RefusedError) as error:
        shape_for(str(tmp_path), "L", 16, roles=roles)
    assert said in str(error.value)


def test_a_base_of_unknown_family_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "zebra", "hidden_size": 4}')
    with pytest.raises(adaptrix.RefusedError, match="no architecture claims 'zebra'"):
        TextToLoRA(checkpoint, tmp_path, "hashed")


def test_the_bases_own_states_are_the_default(checkpoint: Path) -> None:
    generator = TextToLoRA(checkpoint, BASE)
    assert generator.encoder.name == str(BASE)
    one, same, other = (generator.generate(text) for text in (TEXT, f"{TEXT}.", "Erzähle einen Witz"))
    target = next(iter(one.deltas))
    assert one.deltas[target].B.tobytes() == same.deltas[target].B.tobytes()
    assert one.deltas[target].B.tobytes() != other.deltas[target].B.tobytes()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    inputs = tokenizer("The old man", return_tensors="pt")
    with adaptrix.attach(model, {"maths": one, "joke": other}) as session:
        with session.use("maths"):
            assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > 4
        report = session.report()
    assert report


def test_many_are_what_each_is_alone(checkpoint: Path) -> None:
    generator = TextToLoRA(checkpoint, BASE, "hashed")
    texts = [f"Task number {number}" for number in range(11)]
    many = list(generator.generate_many([*texts, texts[0]]))
    assert [adapter.provenance.config["prompt"] for adapter in many] == texts
    alone = generator.generate(texts[9])
    for target, delta in alone.deltas.items():
        found, expected = (torch.tensor(each.dense()) for each in (many[9].deltas[target], delta))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(adaptrix.RefusedError):
        generator.generate_many(["fine", ""])


def test_an_encoder_of_ones_own(checkpoint: Path) -> None:
    class Mine:
        name, width = "mine", 128

        def __call__(self, text: str, /) -> torch.Tensor:
            return torch.arange(128.0) + len(text)

    assert TextToLoRA(checkpoint, BASE, Mine()).generate(TEXT).provenance.config["encoder"] == "mine"
    Mine.width = 64
    with pytest.raises(adaptrix.RefusedError, match="64 wide; expected 128"):
        TextToLoRA(checkpoint, BASE, Mine())


def test_without_base_paths_and_encoder_have_to_be_known(
    checkpoint: Path, trained: Trained, written: Written, tmp_path: Path
) -> None:
    with pytest.raises(adaptrix.RefusedError, match="llama has no modules called q, v"):
        TextToLoRA(checkpoint, encoder="hashed")
    named = trained(shape_for(str(BASE), "M", 128, roles=("v_proj", "q_proj"), latent=16))
    folder = written(tmp_path / "named", named)
    with pytest.raises(adaptrix.UsageError, match="reads the states of its base"):
        TextToLoRA(folder)
    with_base, without = (TextToLoRA(folder, base, "hashed").generate(TEXT).deltas for base in (BASE, None))
    assert with_base.keys() == without.keys()


def test_the_plugin_contributes_a_generator_and_a_command(plugin: tuple[EntryPoint, ...], checkpoint: Path) -> None:
    assert {entry.value for entry in plugin} == {adaptrix_text_to_lora.__name__}
    catalog = Catalog(entry_points=plugin[:1])
    assert [command.name for command in catalog.commands] == ["generate", "text-to-lora"]
    (generator,) = catalog.generators
    assert generator.name == "text-to-lora"
    assert len(generator.generate(TEXT, checkpoint=checkpoint, base=BASE, encoder="hashed").deltas) == 16


@pytest.mark.parametrize("variant", ["L", "S"])
def test_the_command(
    variant: Variant, run: Callable[..., tuple[int, Any]], trained: Trained, written: Written, tmp_path: Path
) -> None:
    folder = written(tmp_path / "t2l", trained(shape_for(str(BASE), variant, 128, latent=16)))
    options = ["--base", str(BASE), "--checkpoint", str(folder / "hypermod.pt")]
    code, said = run("generate", TEXT, *options, "-o", str(tmp_path / "maths.adaptrix.safetensors"))
    assert (code, said["results"][0]["tensors"]) == (0, 32), said
    adapter = adaptrix.load(tmp_path / "maths.adaptrix.safetensors")
    assert adapter.recorded is not None
    assert adapter.recorded.policy == "all"
    assert dict(adapter.provenance.config) | {"prompt": f"{TEXT}."} == dict(adapter.provenance.config)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Traduis en français\n数を足す\n")
    (tmp_path / "out").mkdir()
    code, said = run("generate", TEXT, "--prompts", str(prompts), *options, "-o", f"{tmp_path}/out/", "--to", "peft")
    assert code == 0, said
    assert len(said["results"]) == len(list((tmp_path / "out").iterdir())) == 3
    assert adaptrix.check(said["results"][1]["path"], BASE).ok


def test_a_place_that_is_taken_stops_no_other_prompt(
    run: Callable[..., tuple[int, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    line = ("generate", "Add", "Sub", "--base", str(BASE), "--checkpoint", str(checkpoint), "--encoder", "hashed")
    code, said = run(*line)
    assert code == 0
    Path(said["results"][1]["path"]).unlink()
    code, said = run(*line)
    assert (code, [one["ok"] for one in said["results"]]) == (2, [False, True])
    assert run(*line, "--force")[0] == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("name", ["hypermod.pt", "args.yaml", "prompts.txt"])
def test_no_adapter_takes_the_place_of_what_it_is_made_with(
    run: Callable[..., tuple[int, Any]], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Add\n")
    file = prompts if name == prompts.name else checkpoint / name
    before = file.read_bytes()
    line = ("generate", "--prompts", str(prompts), "--base", str(BASE), "--checkpoint", str(checkpoint))
    code, said = run(*line, "--encoder", "hashed", "-o", str(file), "--force")
    assert (code, said["results"][0]["problems"][0]["code"]) == (2, "output-taken")
    assert file.read_bytes() == before


def test_prompts_that_the_encoder_cannot_read_are_told_at_once(checkpoint: Path) -> None:
    with pytest.raises(adaptrix.RefusedError) as error:
        TextToLoRA(checkpoint, BASE).generate_many(["word " * 600, "fine", "more " * 600])
    assert [problem.code for problem in error.value.problems] == ["prompt"] * 2
    assert "'more more" in str(error.value)


def test_what_is_wrong_with_a_command_line_is_told(
    run: Callable[..., tuple[int, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--base", str(BASE), "--checkpoint", str(checkpoint)]
    codes = {
        ("generate", *options): (2, "prompt"),
        ("generate", "", "ok", "\x1b[0m", *options): (1, "prompt"),
        ("generate", "one", "two", "--name", "x", *options): (2, "option"),
        ("generate", "one", "--to", "kohya", *options): (2, "option"),
        ("generate", "one", "--encoder", str(tmp_path / "none"), *options): (2, "encoder"),
        ("generate", "one", *options[:2], "--checkpoint", str(tmp_path / "none.pt")): (2, "hypernetwork-invalid"),
        ("generate", "word " * 600, *options): (1, "prompt"),
    }
    for line, expected in codes.items():
        code, said = run(*line)
        assert (code, said["problems"][0]["code"]) == expected, said
    assert not list(tmp_path.glob("*.safetensors"))
