"""Models without weights: built on torch's meta device, where only shapes exist.

The conformance kit and ``derive`` read what a family really has from here. torch and transformers are
imported on first use; nothing is downloaded and no remote code is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adaptrix.architecture import Orientation
from adaptrix.optional import require

#: transformers' tables from a config's class to the model class of a task
HEADS = (
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
    "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_FOR_TEXT_ENCODING_MAPPING",
    "MODEL_MAPPING",
)


_NOT_SIZES = frozenset(
    {
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "quantization_config",
        "transformers_version",
    }
)


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter that an adapter can change: ``shape`` as stored, ``orientation`` where its module type shows it.

    ``path`` is that of the module, or of the parameter where it is not called ``weight``.
    """

    path: str
    shape: tuple[int, ...]
    orientation: Orientation | None


def need(module: str) -> Any:
    """An optional module. Raises :class:`UsageError` with the command that installs it."""
    return require(module, "torch", "model class")


def config_of(config: Any) -> Any:
    """A transformers config, from one or from the content of a config.json (with its ``model_type``)."""
    if not isinstance(config, Mapping):
        return config
    return need("transformers").AutoConfig.for_model(**_harmless(config))


def _harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what could fetch code or kernels, or ask for a quantiser: sizes do not depend on it."""
    kept = {key: value for key, value in config.items() if key not in _NOT_SIZES}
    return {key: _harmless(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def model_classes(config: Any) -> list[Any]:
    """The model classes that transformers has for a config, language models first."""
    auto = need("transformers.models.auto.modeling_auto")
    found = []
    for name in HEADS:
        value = getattr(auto, name).get(type(config), None)
        found += [value] if value is not None and not isinstance(value, tuple) else list(value or ())
    return list(dict.fromkeys(found))


def build(model_class: Any, config: Any) -> Any:
    """A model on the meta device: all of its modules, none of its numbers."""
    with need("torch").device("meta"):
        return model_class(config)


def weights(model: Any) -> Iterator[Weight]:
    """Every parameter of two axes, and of three where they are stacked experts. Tied weights are listed under
    each of their names; convolutions and learned tokens ``[1, 1, n]`` are left out."""
    convolution = need("torch.nn.modules.conv")._ConvNd
    for path, module in model.named_modules():
        if isinstance(module, convolution):
            continue
        for name, parameter in module._parameters.items():
            shape = () if parameter is None else tuple(parameter.shape)
            if len(shape) == 2 or (len(shape) == 3 and shape[0] > 1):
                own = ".".join(filter(None, (path, "" if name == "weight" else name)))
                yield Weight(own, shape, _orientation(module, name, len(shape)))


def _orientation(module: Any, name: str, axes: int) -> Orientation | None:
    if axes == 3:
        transposed = getattr(module, "is_transposed", None)
        return None if transposed is None else "experts_transposed" if transposed else "experts"
    if isinstance(module, need("torch.nn").Embedding):
        return "embedding"
    if isinstance(module, need("transformers.pytorch_utils").Conv1D):
        return "conv1d"
    return "linear" if name == "weight" else None
