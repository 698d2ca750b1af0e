"""Words that speak for a skill, and how many of them a text has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

#: A star stands for any ending. Words that mean more than one thing (``run``, ``problem``, ``optimize this model``,
#: ``translate``) are left out or tied to what makes them mean the skill.
KEYWORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "code_generation": (
            "code", "coding", "program", "programming", "programs", "python", "javascript", "typescript", "java",
            "rust", "c++", "golang", "sql", "html", "css", "react", "django", "flask", "script", "function", "class",
            "api", "regex", "unit test*", "compiler", "software", "implement*", "pseudocode", "command line",
            "dockerfile", "library",
        ),
        "mathematics": (
            "math*", "arithmetic", "algebra*", "calculus", "geometr*", "equation*", "integral*", "derivative*",
            "differentiate", "probabilit*", "percent*", "fraction*", "matrix", "eigenvalue*", "theorem", "prove",
            "proof", "polynomial*", "prime*", "square root", "number theory", "compute the", "sum of", "solve for",
        ),
        "reasoning": (
            "reason*", "logic*", "deduc*", "infer*", "premise*", "puzzle*", "riddle*", "step by step",
            "chain-of-thought", "chain of thought", "common sense", "common-sense", "fallac*", "conclusion*",
            "what follows", "contradict*", "hypothes*",
        ),
        "creative_writing": (
            "story", "stories", "storytelling", "storyteller", "tale", "tales", "poem*", "poet*", "poetry", "haiku",
            "limerick", "ballad", "lyrics", "song", "novel", "fiction", "screenplay", "plot twist", "creative",
            "imagin*", "metaphor*", "rhyme*", "dialogue", "monologue", "invent", "compose", "pirate",
        ),
        "analysis": (
            "analy*", "trend*", "interpret*", "compare", "comparison", "evaluate", "assess*", "examine",
            "correlation*", "statistic*", "survey*", "data", "insight*", "metric*", "outlier*", "pattern*",
            "research", "swot", "factors",
        ),
        "summarization": (
            "summar*", "tl;dr", "tldr", "condense*", "shorten*", "key point*", "gist", "abstract", "recap*", "digest",
            "sum up", "in brief", "in a nutshell", "takeaway*", "boil * down", "headline*", "bullet point*",
            "shorter",
        ),
        "translation": (
            "translat*", "traduis*", "traduce", "übersetz*", "bilingual", "localiz*", "localis*", "subtitle*",
            "how do you say", "into german", "into french", "into spanish", "into english", "in english",
            "to english", "to french", "to german", "from latin", "language pair", "languages",
        ),
        "question_answering": (
            "who", "what is", "what's", "what are", "when did", "when was", "where is", "why is", "why do",
            "why does", "how do i", "how far", "how long", "explain*", "answer*", "question*", "trivia", "faq*",
            "tell me about", "which", "difference between",
        ),
        "debugging": (
            "debug*", "bug", "bugs", "fix", "error*", "exception*", "traceback", "stack trace*", "crash*",
            "segfault*", "segmentation fault", "troubleshoot*", "deadlock*", "leak", "freezes", "hangs", "broken",
            "faulty", "fails", "failing", "mistake*", "diagnos*", "went wrong", "is wrong",
        ),
        "optimization": (
            "faster", "speed up", "speed", "performance", "latency", "throughput", "memory footprint", "bottleneck*",
            "efficien*", "minimi*", "maximi*", "reduce the", "cheapest", "shortest", "quicker", "vectoriz*",
            "profile", "hyperparameter*", "cache", "optimize the", "optimise the", "constraints",
        ),
    }
)  # fmt: skip


def count(text: str, keywords: Iterable[str]) -> int:
    """The number of keywords that are in a text, each counted once; words are matched whole, in any case."""
    plain = text.casefold()
    return sum(1 for keyword in keywords if _pattern(keyword).search(plain))


@lru_cache(4096)
def _pattern(keyword: str) -> re.Pattern[str]:
    """A star stands for letters that follow; with space around it, for up to three words."""
    parts = re.split(r"( \* |\*)", keyword.casefold())
    spelled = {" * ": r" (?:\S+ ){1,3}", "*": r"\w*"}
    return re.compile(rf"(?<!\w){''.join(spelled.get(part) or re.escape(part) for part in parts)}(?!\w)")
