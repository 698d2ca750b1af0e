"""Skills of prompts: the labelled set, the classifier that ships, and skills of one's own."""

from __future__ import annotations

from collections import defaultdict
from typing import get_args

import pytest
import torch
from adaptrix_text_to_lora import HashedNgrams
from adaptrix_text_to_lora.skills import KEYWORDS, SKILLS, SkillDetector
from adaptrix_text_to_lora.skills.classifier import f1, regression, scaled
from adaptrix_text_to_lora.skills.features import counted, labels, looking
from adaptrix_text_to_lora.skills.keywords import count
from adaptrix_text_to_lora.skills.labelled import Split, labelled, of_split
from adaptrix_text_to_lora.skills.model import WIDTH, read, train

import adaptrix

GUIDE = {
    "medical_analysis": ["diagnosis", "symptoms", "treatment", "medicine"],
    "financial_modeling": ["stocks", "bonds", "portfolio", "investment"],
}


@pytest.fixture(scope="module")
def detector() -> SkillDetector:
    return SkillDetector()


def test_the_labelled_prompts_are_split_by_template() -> None:
    prompts = labelled()
    assert len(prompts) >= 300
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    splits = defaultdict(set)
    for prompt in prompts:
        splits[prompt.template].add(prompt.split)
        assert prompt.skills <= set(SKILLS)
    assert all(len(each) == 1 for each in splits.values())
    for split in get_args(Split):
        held = [prompt.skills for prompt in of_split(split)]
        assert set().union(*held) == set(SKILLS)
        assert any(len(skills) > 1 for skills in held)
        assert frozenset() in held


def test_the_weights_that_ship_are_those_that_training_gives(detector: SkillDetector) -> None:
    anew, shipped = train(HashedNgrams(WIDTH)), read()
    texts = [prompt.text for prompt in of_split("test")]
    features = looking("both", HashedNgrams(WIDTH))(texts)
    torch.testing.assert_close(shipped.classifier(features), anew.classifier(features), rtol=0, atol=2e-3)
    assert shipped.keyword == pytest.approx(anew.keyword, abs=1e-4) or shipped.keyword == anew.keyword
    wanted = labels(of_split("test"))
    both = f1(shipped.classifier(features) >= shipped.classifier.threshold, wanted)
    assert both > 0.75
    assert both > f1(counted(texts) > 0, wanted)
    first = detector.scores(texts[0])
    torch.testing.assert_close(torch.tensor(list(first.values())), shipped.classifier(features)[0].float())


@pytest.mark.parametrize(
    ("prompt", "skills"),
    [
        ("Make this model excel at code generation and debugging", {"code_generation", "debugging"}),
        ("Optimize this model for mathematical reasoning and problem solving", {"mathematics", "reasoning"}),
        ("Enhance creative writing and storytelling capabilities", {"creative_writing"}),
        ("storytelling", {"creative_writing"}),
        ("Translate this function to Rust", {"code_generation"}),
        ("Translate this recipe into Greek", {"translation"}),
        ("Summarize the findings and analyze the trends", {"summarization", "analysis"}),
        ("Make the sorting routine faster", {"optimization"}),
        ("Hello", set()),
    ],
)
def test_what_prompts_ask_for(detector: SkillDetector, prompt: str, skills: set[str]) -> None:
    found = detector.detect(prompt)
    assert set(found) == skills
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_keywords_are_whole_words() -> None:
    assert count("The classification of a bugle", ["class", "bug"]) == 0
    assert count("Boil this whole thing down, and BOIL it down", ["boil * down"]) == 1
    assert count("translations, Translator", ["translat*"]) == 1
    assert count("C++ or c#", ["c++", "c"]) == 2


def test_custom_skills_by_keywords_examples_and_a_description() -> None:
    detector = SkillDetector()
    prompt = "Which treatment do these symptoms call for?"
    assert "medical_analysis" not in detector.scores(prompt)
    detector.add_custom_skills(GUIDE)
    assert "medical_analysis" in detector.detect(prompt)
    assert detector.scores("Hello")["medical_analysis"] < 0.1
    more, fewer = (detector.scores(text)["financial_modeling"] for text in ("stocks and bonds", "stocks"))
    assert more > fewer > 0.5
    cooking = {"examples": ["How do I bake bread?", "A recipe for soup", "Cook pasta for four", "Season the roast"]}
    detector.add_custom_skills({"cooking": cooking, "knots": {"description": "tie ropes and knots"}})
    assert "cooking" in detector.detect("I want to bake and cook: a recipe for pasta")
    assert "cooking" not in detector.detect("Prove that there are infinitely many primes")
    assert detector.scores("tie a knot")["knots"] > detector.scores("boil an egg")["knots"]
    assert detector.skills == (*KEYWORDS, *GUIDE, "cooking", "knots")


def test_custom_skills_that_say_nothing_are_told_at_once_and_none_is_added() -> None:
    detector = SkillDetector()
    wrong = {"debugging": ["bug"], "": ["x"], "a": [], "b": "word", "c": {"words": ["x"]}, "d": {"examples": [""]}}
    with pytest.raises(adaptrix.RefusedError) as error:
        detector.add_custom_skills({"fine": ["word"], **wrong})
    assert {problem.where.split(" ")[1] for problem in error.value.problems} == {f"'{name}'" for name in wrong}
    assert detector.skills == tuple(KEYWORDS)


def test_a_prompt_must_be_one(detector: SkillDetector) -> None:
    for bad in ("", " \n", "\x1b[0m", "a" * 40_000):
        with pytest.raises(adaptrix.RefusedError):
            detector.detect(bad)


def test_any_encoder_serves() -> None:
    detector = SkillDetector(HashedNgrams(64))
    assert set(detector.detect("Fix the bug in this function and debug it")) >= {"debugging"}


def test_scaling_and_regression_find_what_made_the_labels() -> None:
    """Labels drawn from known weights: they are found again, and doubled logits are halved."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    logits = features @ torch.tensor([[2.0], [-1.0]], dtype=torch.float64) + 0.5
    drawn = (torch.rand(logits.shape, generator=generator) < torch.sigmoid(logits)).double()
    weight, bias = regression(features, drawn)
    torch.testing.assert_close(weight[0], torch.tensor([2.0, -1.0], dtype=torch.float64), rtol=0.05, atol=0)
    assert float(bias) == pytest.approx(0.5, abs=0.05)
    scaling = scaled(2 * logits - 1, drawn)
    assert (scaling.slope, scaling.shift) == pytest.approx((0.5, 0.5), abs=0.05)
