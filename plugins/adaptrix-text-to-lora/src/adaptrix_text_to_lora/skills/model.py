"""The trained classifier as a file, and how it is trained: in a few seconds, and without chance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from adaptrix import Tensor
from adaptrix.extend import safetensors_file
from adaptrix_text_to_lora.encoders import Encoder
from adaptrix_text_to_lora.skills.classifier import Classifier, Scaling, best_threshold, fitted, scaled
from adaptrix_text_to_lora.skills.features import Kind, counted, labels, looking
from adaptrix_text_to_lora.skills.labelled import of_split

WIDTH = 2048  # of the hashed n-grams
FILE = files("adaptrix_text_to_lora.skills") / "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """The classifier of the ten skills, and what a number of keywords says of any skill, the ten taken together."""

    classifier: Classifier
    keyword: Scaling
    keyword_threshold: float


def train(encoder: Encoder, kind: Kind = "both") -> Model:
    """Trained on one split of the labelled prompts and calibrated on another; the third is left for tests."""
    look, splits = looking(kind, encoder), (of_split("train"), of_split("calibration"))
    pairs = [(look([prompt.text for prompt in prompts]), labels(prompts)) for prompts in splits]
    counts, wanted = counted([prompt.text for prompt in splits[1]]), labels(splits[1])
    keyword = scaled(counts, wanted)
    return Model(fitted(pairs[0], pairs[1]), keyword, best_threshold(keyword(counts), wanted))


def write(model: Model, path: Path) -> None:
    """Weights in fp16: probabilities move by less than a thousandth."""
    classifier = model.classifier
    rest = {
        "scaling": asdict(classifier.scaling),
        "threshold": classifier.threshold,
        "keyword": asdict(model.keyword),
        "keyword_threshold": model.keyword_threshold,
    }
    arrays = {"weight": classifier.weight, "bias": classifier.bias}
    tensors = {name: Tensor.of(array.numpy().astype(np.float16)) for name, array in arrays.items()}
    safetensors_file.write(path, tensors, {"skills": json.dumps(rest, sort_keys=True)})


def read(path: Path | None = None) -> Model:
    """The model in a file; without one, that which ships."""
    if path is None:
        with as_file(FILE) as shipped:
            return read(shipped)
    tensors, metadata = safetensors_file.read(path)
    rest = json.loads(metadata["skills"])
    weight, bias = (torch.from_numpy(tensors[name].float32().copy()).double() for name in ("weight", "bias"))
    classifier = Classifier(weight, bias, Scaling(**rest["scaling"]), rest["threshold"])
    return Model(classifier, Scaling(**rest["keyword"]), rest["keyword_threshold"])
