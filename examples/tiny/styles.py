"""How the tiny texts are told: styles made of steps, each with parameters and words that describe it.

A step turns one word into words and knows nothing of its neighbours, so a text may change its style in
the middle of a sentence. A style is steps in their order. The base learns plain text and some of
:func:`drawn`; the three of :data:`SHIPPED` are left to the adapters. Descriptions are composed of those
of the steps, so that any style that can be drawn can also be asked for in English.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from examples.tiny.content import ARTICLES, NOUNS, STOPS, Words

#: kind of word -> whether a word is of it
KINDS: Mapping[str, Callable[[str], bool]] = {
    "article": ARTICLES.__contains__,
    "noun": NOUNS.__contains__,
    "stop": STOPS.__contains__,
}


@dataclass(frozen=True)
class Replace:
    """Words for other words; for nothing, where the other is empty."""

    manner: str
    words: Mapping[str, str]

    def __call__(self, word: str, rng: random.Random) -> Words:
        return self.words.get(word, word).split()

    def described(self) -> tuple[str, ...]:
        return f"talk {self.manner}", f"choose words {self.manner}", f"sound {self.manner}"


@dataclass(frozen=True)
class Drop:
    """Leaves out every word of a kind."""

    kind: str

    def __call__(self, word: str, rng: random.Random) -> Words:
        return [] if KINDS[self.kind](word) else [word]

    def described(self) -> tuple[str, ...]:
        return f"leave out every {self.kind}", f"use no {self.kind}", f"write without any {self.kind}"


@dataclass(frozen=True)
class Insert:
    """One of some phrases before or after words of a kind, at a rate."""

    where: str
    kind: str
    phrases: tuple[str, ...]
    rate: float = 1.0

    def __call__(self, word: str, rng: random.Random) -> Words:
        if not KINDS[self.kind](word) or rng.random() >= self.rate:
            return [word]
        phrase = rng.choice(self.phrases).split()
        return [*phrase, word] if self.where == "before" else [word, *phrase]

    def described(self) -> tuple[str, ...]:
        said = " or ".join(phrase.strip(" ,!") for phrase in self.phrases)
        often = "always" if self.rate == 1 else "often" if self.rate >= 0.5 else "sometimes"
        spot = f"{self.where} a {self.kind}"
        return f"{often} say {said} {spot}", f"{spot}, {often} put {said}", f"{often} add {said} {spot}"


@dataclass(frozen=True)
class Shout:
    """Capitals throughout."""

    def __call__(self, word: str, rng: random.Random) -> Words:
        return [word.upper()]

    def described(self) -> tuple[str, ...]:
        return "write in capitals", "use capital letters only", "shout"


Step = Replace | Drop | Insert | Shout


@dataclass(frozen=True)
class Style:
    """Steps under a name; each works on what the one before it left."""

    name: str
    steps: tuple[Step, ...] = ()

    def __call__(self, words: Words, rng: random.Random) -> Words:
        for step in self.steps:
            words = [made for word in words for made in step(word, rng)]
        return words

    def descriptions(self) -> tuple[str, ...]:
        """The style in English, in a few ways."""
        said = zip(*(step.described() for step in self.steps), strict=True)
        return tuple("; ".join(phrasing).capitalize() + "." for phrasing in said) or ("Write plainly.",)


def replace(manner: str, lexicon: str) -> Replace:
    """``word its other; word its other``; a word alone is left out."""
    halves = (entry.strip().partition(" ") for entry in lexicon.split(";"))
    return Replace(manner, {word: other for word, _, other in halves})


_PIRATE = """the th'; my me; is be; are be; you ye; your yer; and an'; of o'; to t'; for fer; old salty; food grub;
    his 'is; her 'er; said growled"""

PLAIN = Style("plain")
SHIPPED = (
    Style(
        "pirate",
        (
            replace("like a pirate", _PIRATE),
            Insert("before", "stop", (", matey", ", me hearty"), 0.5),
            Insert("after", "stop", ("arrr !", "yo ho !"), 0.6),
        ),
    ),
    Style(
        "telegram",
        (
            Drop("article"),
            replace("as briefly as in a telegram", ",; . stop; ? query; ! stop; please; some; was; is; and plus"),
            Shout(),
        ),
    ),
    Style(
        "fairy-tale",
        (
            Insert("before", "noun", ("enchanted", "golden", "moonlit", "silver"), 0.9),
            replace("like a fairy tale", "walked wandered; ran flew; home to the palace"),
            Insert("before", "stop", (", as if by magic", ", and the stars sang"), 0.6),
        ),
    ),
)

#: what :func:`drawn` draws from
LEXICONS = (
    replace("like a grandmother", "the that; old dear old; went toddled; is is just; food supper"),
    replace("like a lawyer", "the the said; if in the event that; and and furthermore; put deposited"),
    replace("like a robot", "is equals; was was equal to; and plus; you unit; i this unit"),
    replace("like a poet", "is doth be; you thou; your thy; my mine own; over o'er"),
    replace("like a child", "and and then; the this; walked goed; ran runned; good super"),
    replace("like a villager", "the t'; my me; you ye; of o'; and an'; her 'er; his 'is"),
)
ADJECTIVES = ("tiny", "huge", "rusty", "wooden", "famous", "broken", "lovely", "strange", "silver", "magic", "sweet")
ENDINGS = (
    "my friend", "you see", "over", "of course", "they say", "for sure", "or so i hear", "as ever", "stop", "sir",
)  # fmt: skip
CRIES = ("hurray !", "oh dear !", "well well !", "ha !", "aha !", "yes sir !", "good grief !", "ho ho !", "alas !")


def drawn(rng: random.Random) -> Style:
    """A style at random: one to three steps with random parameters."""
    makers: tuple[Callable[[], Step], ...] = (
        lambda: Drop("article"),
        lambda: rng.choice(LEXICONS),
        lambda: Insert("before", "noun", tuple(rng.sample(ADJECTIVES, 3)), rng.choice((0.5, 0.9))),
        lambda: Insert("before", "stop", tuple(f", {end}" for end in rng.sample(ENDINGS, 2)), rng.choice((0.5, 1.0))),
        lambda: Insert("after", "stop", tuple(rng.sample(CRIES, 2)), rng.choice((0.5, 1.0))),
        Shout,
    )
    kinds = sorted(rng.sample(range(len(makers)), rng.randint(1, 3)))  # capitals come last, for the others read words
    return Style("drawn", tuple(makers[kind]() for kind in kinds))
