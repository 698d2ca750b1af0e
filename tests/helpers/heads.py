"""Builders of tiny models with other heads, their embeddings tied or not."""

import torch
import transformers

from tests.helpers.families import tiny_config, tiny_model

KINDS = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
}


def builder(family, *, tie=None, task=None):
    """A builder of a model of a family: of another head, and with its embedding tied or not."""

    def build():
        config = tiny_config(family)
        parts = {id(part): part for part in (config, getattr(config, "text_config", config))}.values()
        for part in parts:
            part.tie_word_embeddings = part.tie_word_embeddings if tie is None else tie
            if task:
                part.num_labels, part.pad_token_id = 2, 0
        if task and family == "t5":
            config.eos_token_id = 11  # its classifier looks for the end of the text
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        if task:
            return getattr(transformers, f"AutoModelFor{KINDS[task]}").from_config(config).eval()
        return type(tiny_model(family))(config).eval()

    return build


def head(kind, family):
    """A builder of a tiny model with another head."""

    def build():
        torch.manual_seed(0)
        config = tiny_config(family)
        config.num_labels, config.pad_token_id = 2, 0
        return getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()

    return build
