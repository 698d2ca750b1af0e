"""Training a hypernetwork: to give back a library of LoRAs, or through the base, on what its LoRAs should answer.

Both take what is in memory and change the hypernetwork that they are given; files are the command line's business::

    tasks = [Task(embeddings, ids, labels), …]  # [descriptions, E], [examples, tokens] twice, labels -100 in prompts
    curve = fine_tune(hypernetwork, model, tasks, Objective(scale=2.0), Recipe(steps=2000, rate=1e-3, rows=4))
    write_checkpoint(folder, hypernetwork, CheckpointRecord(alpha=16, base="./llama"))  # which TextToLoRA reads
    library = Library.of_factors(embeddings, {"q": (A, B), "v": (A, B)})  # A [LoRAs, layers, r, in], and so on
    curve = reconstruct(hypernetwork, library, Recipe(steps=2000, rate=1e-3))
"""

from adaptrix.extend import renamed_names
from adaptrix_text_to_lora.training.canonical import canonical
from adaptrix_text_to_lora.training.finetuning import FINE_TUNING, Objective, fine_tune
from adaptrix_text_to_lora.training.library import Library
from adaptrix_text_to_lora.training.loop import Recipe, State
from adaptrix_text_to_lora.training.published import CheckpointRecord, write_checkpoint
from adaptrix_text_to_lora.training.reconstruction import RECONSTRUCTION, reconstruct
from adaptrix_text_to_lora.training.scoring import Evaluation, Score, evaluate
from adaptrix_text_to_lora.training.tasks import Task

__all__ = [
    "FINE_TUNING",
    "RECONSTRUCTION",
    "CheckpointRecord",
    "Evaluation",
    "Library",
    "Objective",
    "Recipe",
    "Score",
    "State",
    "Task",
    "canonical",
    "evaluate",
    "fine_tune",
    "reconstruct",
    "write_checkpoint",
]

__getattr__ = renamed_names(__name__, {"Card": "CheckpointRecord"})
