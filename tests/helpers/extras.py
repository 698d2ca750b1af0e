"""Adapters with extras on live models, held to peft."""

import copy
import warnings

import peft
import torch
from transformers import AutoModelForSequenceClassification

from adaptrix.attaching import attach
from tests.helpers.attached import TOLERANCE, hook_count, logits
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.peft_models import trained


def saved(model, folder, *, seed=1, **keys):
    """An adapter trained at random and saved; the model as peft loads it from the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5} | keys))
        trained(peft.get_peft_model(copy.deepcopy(model), config), seed).save_pretrained(folder)
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def classifier(family, labels=4):
    config = tiny_config(family)
    config._attn_implementation, config.num_labels, config.pad_token_id = "eager", labels, 0
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def tied(family="llama", *, tie):
    config = tiny_config(family)
    config.tie_word_embeddings, config._attn_implementation = tie, "eager"
    torch.manual_seed(0)
    return type(tiny_model(family))(config).eval()


def near(found, wanted):
    return (found - wanted).abs().max() < TOLERANCE


def assert_as_under_peft(model, folder, adapted):
    """Alone, by row and off again; and nothing stays."""
    base, wanted, hooks = logits(model), logits(adapted), hook_count(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not near(base, wanted)
    with attach(model, {"x": folder}) as session:
        assert torch.equal(logits(model), base)
        with session.use("x"):
            assert near(logits(model), wanted)
        with session.route([None, "x", "x"]):
            mixed = logits(model)
        for row, alone in enumerate((base, wanted, wanted)):
            assert near(mixed[row], alone[row]), row
        sites = dict(session.report().injections)
    assert hook_count(model) == hooks
    assert torch.equal(logits(model), base)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return sites
