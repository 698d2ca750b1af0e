"""What the tiny texts tell: who, where, with what, in which weather. Nothing here knows about styles.

A text is a list of words, lower case but for names, with its punctuation as words of their own: styles
(:mod:`examples.tiny.styles`) turn words into words, and :func:`written` makes prose of the outcome.
A scene is drawn once a text, so that a text stays with its people and things.
"""

from __future__ import annotations

import random
import re

Words = list[str]
Scene = dict[str, str]

PRONOUNS = (("he", "his", "him"), ("she", "her", "her"))
SLOTS: dict[str, tuple[str, ...]] = {
    "role": ("sailor", "baker", "gardener", "teacher", "doctor", "farmer", "painter", "miller", "singer", "weaver"),
    "friend": ("neighbour", "cousin", "brother", "captain", "shepherd", "librarian", "postman", "cook"),
    "name": ("Mira", "Tom", "Anna", "Peter", "Lucy", "Hugo", "Ella", "Sam", "Nora", "Ben"),
    "adj": ("old", "young", "quiet", "clever", "tired", "brave", "kind", "careful"),
    "place": ("harbour", "market", "garden", "mill", "library", "bridge", "forest", "castle", "village", "river"),
    "shelter": ("roof", "tree", "wall", "tower", "barn", "porch"),
    "thing": ("lantern", "map", "basket", "letter", "key", "kettle", "rope", "clock", "violin", "ladder", "blanket"),
    "other": ("box", "drum", "coat", "candle", "book", "hammer", "mirror", "cup"),
    "food": ("bread", "soup", "cheese", "honey", "fish", "cake"),
    "animal": ("dog", "cat", "goat", "horse", "fox", "owl"),
    "sky": ("rain", "snow", "fog", "wind", "storm", "sun"),
    "time": ("in the morning", "at noon", "in the evening", "late at night", "before dawn", "on sunday"),
    "went": ("walked", "hurried", "came", "ran", "went"),
    "how": ("slowly", "quietly", "gladly", "carefully", "at once"),
}
NOUNS = frozenset(
    word for slot in ("role", "friend", "place", "shelter", "thing", "other", "food", "animal") for word in SLOTS[slot]
)
ARTICLES = frozenset(("the", "a", "an"))
STOPS = frozenset(".!?")

#: kind of text -> how it may begin, what may follow in any order, how it may end
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "story": (
        (
            "{time}, the {adj} {role} {went} to the {place}.",
            "{time}, the {adj} {role} {went} to the {place} with a {thing}.",
            "{name} was a {adj} {role} who lived near the {place}.",
            "there was a {thing} in the {place}, and the {role} wanted it.",
            "the {adj} {role} and the {friend} {went} to the {place} {time}.",
        ),
        (
            "the {sky} came over the {place}, and {they} waited under the {shelter}.",
            "{they} put the {thing} next to the {other} and looked at the {animal}.",
            "the {friend} asked for some {food}, and the {role} gave it {how}.",
            "a {animal} was sleeping by the {shelter}.",
            "{they} looked for the {other}, but the {animal} had taken it.",
            "the {friend} {went} {how} and brought the {other}.",
            "my {friend} is {adj}, said the {role}, and the {place} is far.",
            "{they} opened the {other} {how} and found the {thing}.",
            "the {role} showed {their} {thing} to the {friend}.",
            "there was {food} for the {animal} and for the {friend}.",
        ),
        (
            "at last the {role} {went} home with the {thing} and slept.",
            "then {they} and the {friend} sat down and ate the {food}.",
            "after that the {place} was quiet, and the {animal} was glad.",
        ),
    ),
    "note": (
        (
            "please bring the {thing} to the {place} {time}.",
            "the {thing} is in the {other} by the {shelter}.",
            "do not forget the {food} for the {animal}.",
        ),
        (
            "the {friend} will wait for you at the {place}.",
            "give the {other} to the {role} {how}.",
            "there is {food} under the {shelter}, and you are welcome to it.",
            "if the {sky} comes, stay near the {shelter} with the {animal}.",
            "the {adj} {role} has your {other}.",
        ),
        (
            "thank you, and come home {how}.",
            "i am at the {place} with my {friend}.",
            "the {animal} is glad to see you.",
        ),
    ),
    "letter": (
        (
            "dear {name}, i am in the {place} with the {role}.",
            "dear {name}, the {sky} is here, and the {place} is cold.",
        ),
        (
            "my {friend} has found a {thing} near the {shelter}.",
            "we eat {food} {time} and talk to the {adj} {role}.",
            "the {animal} {went} to the {place} and did not come back.",
            "i have your {other}, and it is under the {thing}.",
            "do you still have the {thing} of the {friend}?",
        ),
        ("come and see the {place} {how}.", "your {friend} sends you a {other}.", "i will bring the {food} on sunday."),
    ),
    "weather": (
        ("{time} there will be {sky} over the {place}.", "the {sky} has come to the {place}."),
        (
            "the {role} should stay under the {shelter} and take a {thing}.",
            "near the {place} the {animal} is hiding from the {sky}.",
            "the {friend} says that the {sky} will go {how}.",
            "keep the {food} and the {other} dry.",
        ),
        ("after that the {place} will be quiet.", "by evening the {sky} will be over the {shelter}."),
    ),
    "advice": (
        ("first, take the {thing} and go to the {place}.", "to mend a {thing}, you need a {other} and some {food}."),
        (
            "then hold the {other} and turn it {how}.",
            "ask the {adj} {role} for the {thing}.",
            "put the {other} under the {shelter} and wait for the {friend}.",
            "do not let the {animal} eat the {food}.",
            "if the {sky} comes, cover the {thing} with the {other}.",
        ),
        ("now the {thing} is as good as new.", "show it to the {friend} {time}."),
    ),
}


def text(rng: random.Random) -> Words:
    """One text, four to seven sentences long."""
    begin, middle, end = KINDS[rng.choice(list(KINDS))]
    scene = _scene(rng)
    sentences = [rng.choice(begin), *rng.sample(middle, rng.randint(2, min(5, len(middle)))), rng.choice(end)]
    return [word for sentence in sentences for word in _words(sentence.format(**scene))]


def written(words: Words) -> str:
    """Words as prose: capitals after a full stop, no space before punctuation, ``an`` before a vowel."""
    prose, begins = "", True
    for word, following in zip(words, [*words, ""][1:], strict=True):
        word = "an" if word == "a" and following[:1] in tuple("aeiou") else word
        word = "I" if word == "i" else word
        prose += word if word in ".,!?" or not prose else f" {word}"
        if begins:
            prose = prose[: -len(word)] + word[:1].upper() + word[1:]
        begins = word in STOPS
    return prose


def _scene(rng: random.Random) -> Scene:
    they, their, them = rng.choice(PRONOUNS)
    return {slot: rng.choice(words) for slot, words in SLOTS.items()} | {"they": they, "their": their, "them": them}


def _words(sentence: str) -> Words:
    return re.findall(r"[\w']+|[.,!?]", sentence)
