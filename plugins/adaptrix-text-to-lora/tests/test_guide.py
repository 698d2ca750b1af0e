"""The guide's calls: what they return, whose targets are meant, and what is refused rather than made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from adaptrix_text_to_lora import HashedNgrams, Hypernetwork, SakanaAIIntegration, TextToLoRAConfig, shape_for
from adaptrix_text_to_lora.encoders import scaled
from adaptrix_text_to_lora.training import Objective, Recipe, Task, fine_tune
from adaptrix_text_to_lora.training.published import CheckpointRecord, write_checkpoint
from transformers import AutoModelForCausalLM

import adaptrix
from tests.helpers.families import tiny_model

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
PROMPT = "Make this model excel at code generation and debugging"
Trained, Written = Callable[..., Hypernetwork], Callable[..., Path]


@pytest.fixture
def gpt2(trained: Trained, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The guide's model as a folder, with a hypernetwork of its config in it, as training might leave it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("microsoft/DialoGPT-small")
    tiny_model("gpt2", 0).save_pretrained(folder)
    shape = TextToLoRAConfig().hypernetwork(str(folder), 32).shape
    written(folder / "text-to-lora", trained(shape), {"emb_model": "hashed"})
    return str(folder)


def test_what_the_guide_returns(gpt2: str) -> None:
    result = SakanaAIIntegration().generate_adapter_from_text(PROMPT, gpt2)
    info = result["adapter_info"]
    assert set(info) == {"prompt", "detected_skills", "skill_weights", "adapters"}
    assert info["prompt"] == PROMPT
    assert set(info["detected_skills"]) == {"code_generation", "debugging"}
    assert all(0.4 < weight <= 1 for weight in info["skill_weights"])
    factors = info["adapters"]
    assert {type(factor) for factor in factors.values()} == {torch.Tensor}
    assert factors["transformer.h.0.attn.c_attn.lora_A.weight"].shape[0] == 3 * 16


def test_targets_that_gpt2_calls_otherwise_are_found_by_role_and_said(gpt2: str, tmp_path: Path) -> None:
    """The adapter that comes of it acts on GPT-2 as peft runs it."""
    adapter = SakanaAIIntegration().generate_adapter_from_text(PROMPT, gpt2)["adapter"]
    said = "\n".join(str(problem) for problem in adapter.problems)
    assert "q_proj: gpt2 has none: part q of transformer.h.{layer}.attn.c_attn is meant" in said
    assert "o_proj: gpt2 has none: transformer.h.{layer}.attn.c_proj is meant" in said
    assert {problem.severity for problem in adapter.problems} == {"note"}
    model, ids = AutoModelForCausalLM.from_pretrained(gpt2).eval(), torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad(), adaptrix.attach(model, {"it": adapter}) as session:
        plain = model(ids).logits
        with session.use("it"):
            attached = model(ids).logits
    wrapped = peft.PeftModel.from_pretrained(model, adaptrix.convert(adapter, tmp_path / "out", to="peft", base=gpt2))
    with torch.no_grad():
        torch.testing.assert_close(wrapped(ids).logits, attached, rtol=1e-5, atol=1e-5)
    assert (attached - plain).abs().max() > 1e-3


def test_from_the_guides_config_through_training_to_an_adapter_that_acts(tmp_path: Path) -> None:
    """Two tasks on a GPT-2: the sentence of each makes the model answer as it was trained to, and the other's not."""
    torch.manual_seed(0)
    model, folder = tiny_model("gpt2", 0).eval(), tmp_path / "gpt2"
    model.save_pretrained(folder)
    config, encoder = TextToLoRAConfig(32, 16, adapter_rank=4, adapter_alpha=8, dropout=0.0), HashedNgrams(16)
    hypernetwork = config.hypernetwork(str(folder), encoder.width)
    sentences = ("Count upwards.", "Say nothing else!")
    answers = (torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 9, 9, 9]]))
    tasks = [Task(scaled(encoder(text), encoder)[None], ids, ids) for text, ids in zip(sentences, answers, strict=True)]
    fine_tune(hypernetwork, model, tasks, Objective(scale=2.0, smoothing=0.0), Recipe(steps=100, rate=2e-2, tasks=2))
    write_checkpoint(folder / "text-to-lora", hypernetwork, CheckpointRecord(8, encoder="hashed"))
    sakana, found = SakanaAIIntegration(config), []
    made = [sakana.generate_adapter_from_text(text, str(folder))["adapter"] for text in sentences]
    with torch.no_grad(), adaptrix.attach(model, {str(at): adapter for at, adapter in enumerate(made)}) as session:
        for ids in answers:
            for at in "01":
                with session.use(at):
                    found.append(float(model(ids, labels=ids).loss))
        base = [float(model(ids, labels=ids).loss) for ids in answers]
    assert found[0] < min(found[1], base[0]) - 0.15
    assert found[3] < min(found[2], base[1]) - 0.15


def test_a_model_without_a_trained_hypernetwork_gets_none_made_up() -> None:
    with pytest.raises(adaptrix.UsageError, match="adaptrix text-to-lora train") as error:
        SakanaAIIntegration().generate_adapter_from_text(PROMPT, "microsoft/DialoGPT-small")
    assert error.value.problems[0].code == "hypernetwork-missing"
    assert "there is no folder microsoft/DialoGPT-small here" in error.value.problems[0].found


def test_the_configs_fields_are_those_of_the_guide() -> None:
    config = TextToLoRAConfig(
        hyper_network_size=256,
        skill_embeddings_dim=128,
        adapter_rank=16,
        adapter_alpha=32,
        dropout=0.1,
        num_layers_to_adapt=8,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
    )
    assert config == TextToLoRAConfig()
    made = TextToLoRAConfig(hyper_network_size=24, skill_embeddings_dim=8, dropout=0.25).hypernetwork(str(BASE), 12)
    assert (made.shape.head_in, made.shape.latent, made.shape.rank, made.shape.embedding) == (24, 8, 16, 12)
    assert {module.p for module in made.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_fields_that_cannot_be_are_told_at_once() -> None:
    with pytest.raises(adaptrix.UsageError) as error:
        TextToLoRAConfig(0, 6, "8", float("nan"), 1.0, -1, "q_proj")
    assert [problem.where for problem in error.value.problems] == [
        "hyper_network_size", "skill_embeddings_dim", "adapter_rank", "num_layers_to_adapt", "adapter_alpha", "dropout",
        "target_modules",
    ]  # fmt: skip


def test_a_config_that_the_hypernetwork_was_not_made_with_is_refused_field_by_field(gpt2: str) -> None:
    wrong = TextToLoRAConfig(hyper_network_size=1, adapter_rank=4, adapter_alpha=1, target_modules=["q_proj", "v"])
    with pytest.raises(adaptrix.RefusedError) as error:
        SakanaAIIntegration(wrong).generate_adapter_from_text(PROMPT, gpt2)
    fields = {problem.where for problem in error.value.problems}
    assert fields == {"hyper_network_size", "adapter_rank", "adapter_alpha", "target_modules"}
    assert "q v; expected o k q v" in str(error.value)


def test_as_many_layers_in_the_middle_as_the_config_says(trained: Trained, written: Written, tmp_path: Path) -> None:
    config = TextToLoRAConfig(skill_embeddings_dim=8, hyper_network_size=12, num_layers_to_adapt=3)
    shape = config.hypernetwork(str(BASE), 16).shape
    folder = written(tmp_path / "t2l", trained(shape), {"emb_model": "hashed"})
    paths = [
        {target.path for target in SakanaAIIntegration(each, checkpoint=str(folder)).generate_adapter_from_text(
            PROMPT, str(BASE))["adapter"].deltas}
        for each in (config, None)
    ]  # fmt: skip
    assert {path.split(".")[2] for path in paths[0]} == {"2", "3", "4"}
    assert len(paths[1]) == 8 * 4


def test_custom_skills_and_a_batch(gpt2: str) -> None:
    sakana = SakanaAIIntegration()
    sakana.add_custom_skills({"medical_analysis": ["diagnosis", "symptoms", "treatment", "medicine"]})
    prompts = ["Read symptoms and propose a diagnosis", "Optimize for mathematical reasoning"]
    results = [sakana.generate_adapter_from_text(prompt, gpt2)["adapter_info"] for prompt in prompts]
    assert "medical_analysis" in results[0]["detected_skills"]
    assert set(results[1]["detected_skills"]) == {"mathematics", "reasoning"}
    first, second = (next(iter(result["adapters"].values())) for result in results)
    assert not torch.equal(first, second)


def test_a_hypernetwork_in_the_bases_folder_is_what_is_taken(gpt2: str, tmp_path: Path) -> None:
    from adaptrix_text_to_lora import TextToLoRA

    named = TextToLoRA(f"{gpt2}/text-to-lora", gpt2).generate(PROMPT)
    assert named.deltas.keys() == TextToLoRA(base=gpt2).generate(PROMPT).deltas.keys()
    shutil.rmtree(f"{gpt2}/text-to-lora")
    for base in (gpt2, None):
        with pytest.raises(adaptrix.UsageError, match="no checkpoint was named"):
            TextToLoRA(base=base)


def test_a_name_of_llamas_must_mean_a_role_that_the_base_has(tmp_path: Path) -> None:
    tiny_model("gpt2", 0).config.save_pretrained(tmp_path)
    with pytest.raises(adaptrix.RefusedError, match="it has no gate_proj"):
        shape_for(str(tmp_path), "L", 16, roles=("q_proj", "gate_proj"))
