"""The public names of this plugin; :func:`adaptrix.extend.lazy_names` reads them here."""

from collections.abc import Iterator

from adaptrix import Command, Generator
from adaptrix_text_to_lora.encoders import Encoder as Encoder
from adaptrix_text_to_lora.encoders import HashedNgrams as HashedNgrams
from adaptrix_text_to_lora.generator import TextToLoRA as TextToLoRA
from adaptrix_text_to_lora.guide import SakanaAIIntegration as SakanaAIIntegration
from adaptrix_text_to_lora.guide import TextToLoRAConfig as TextToLoRAConfig
from adaptrix_text_to_lora.hypernetwork import Hypernetwork as Hypernetwork
from adaptrix_text_to_lora.shape import Shape as Shape
from adaptrix_text_to_lora.skills import SkillDetector as SkillDetector
from adaptrix_text_to_lora.states import ModelStates as ModelStates
from adaptrix_text_to_lora.targets import shape_for as shape_for

def adaptrix_generators() -> Iterator[Generator]: ...
def adaptrix_commands() -> Iterator[Command]: ...
