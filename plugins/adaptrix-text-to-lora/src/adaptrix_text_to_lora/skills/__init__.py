"""Detection of the skills that a prompt asks for: keywords and an embedding, weighed together and calibrated."""

from __future__ import annotations

from adaptrix_text_to_lora.skills.detector import SkillDetector
from adaptrix_text_to_lora.skills.keywords import KEYWORDS

SKILLS = tuple(KEYWORDS)

__all__ = ["KEYWORDS", "SKILLS", "SkillDetector"]
