"""The tiny base of the examples: it is small, its texts can be made again, and each adapter speaks its own style."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

import adaptrix
from examples.tiny.content import text, written
from examples.tiny.styles import PLAIN, SHIPPED, Drop, Insert, Replace, Shout, Style, drawn

TINY = Path(__file__).parents[1] / "examples" / "tiny"
ADAPTERS = {style.name: TINY / "adapters" / style.name for style in SHIPPED}


def test_what_ships_is_small():
    shipped = [path for folder in (TINY / "base", *ADAPTERS.values()) for path in folder.glob("*") if path.is_file()]
    assert len(shipped) > 8
    assert sum(path.stat().st_size for path in shipped) <= 5e6
    hypernetwork = [path.stat().st_size for path in (TINY / "base" / "text-to-lora").iterdir()]
    assert len(hypernetwork) == 3
    assert sum(hypernetwork) <= 3e6


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_middle_plan_keeps_all_of_these_adapters(name, tmp_path):
    assert adaptrix.check(ADAPTERS[name], base=TINY / "base").ok
    out = tmp_path / "it.adaptrix.safetensors"
    path = adaptrix.convert(ADAPTERS[name], out, base=TINY / "base", layers="middle")
    recorded = adaptrix.load(path).recorded
    assert recorded.policy == "middle"
    assert {role.layers for role in adaptrix.inspect(path).roles} == {"4-5"}
    assert {4, 5} <= set(recorded.layers["layers"])


def test_each_adapter_reads_its_own_style_best():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()
    voices = (None, *ADAPTERS)
    with adaptrix.attach(model, ADAPTERS) as session, torch.no_grad():
        for style in SHIPPED:
            losses = {}
            for voice in voices:
                with session.use(voice):
                    losses[voice] = sum(float(model(ids, labels=ids).loss) for ids in held_out(style, tokenizer))
            own = losses.pop(style.name)
            assert own < 0.7 * min(losses.values()), (style.name, own, losses)


def held_out(style: Style, tokenizer, texts: int = 6):
    """Token ids of texts that no training saw: its generators had other seeds."""
    rng = random.Random(f"held out {style.name}")
    return [tokenizer(written(style(text(rng), rng)), return_tensors="pt").input_ids for _ in range(texts)]


def test_steps_turn_words_into_words():
    words = ["the", "old", "cat", "saw", "a", "fox", "."]
    rng = random.Random(0)
    steps = (Drop("article"), Replace("so", {"saw": "did see"}), Insert("before", "noun", ("big",)), Shout())
    style = Style("all", steps)
    assert written(style(words, rng)) == "OLD BIG CAT DID SEE BIG FOX."
    assert style.descriptions()[2].startswith("Write without any article; sound so;")
    crying = Style("some", (Insert("after", "stop", ("oh dear !",)),))
    assert written(crying(words, rng)) == "The old cat saw a fox. Oh dear!"
    assert written(PLAIN(["i", "saw", "a", "old", "fox", "."], rng)) == "I saw an old fox."


def test_a_style_can_change_anywhere():
    rng = random.Random(1)
    for style in SHIPPED:
        words = text(rng)
        alone = Style("steps without chance", tuple(step for step in style.steps if not isinstance(step, Insert)))
        for cut in range(len(words)):
            assert alone(words[:cut], rng) + alone(words[cut:], rng) == alone(words, rng)


def test_equal_seeds_give_equal_texts_and_styles():
    first, second = ([(text(rng), drawn(rng)) for _ in range(5)] for rng in (random.Random(4), random.Random(4)))
    assert first == second
    assert all(one != other for one, other in pairwise(first))
