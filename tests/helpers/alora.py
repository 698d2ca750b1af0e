"""Activated LoRAs that peft saves, prompts that invoke them, and what is computed with both."""

import copy

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

INVOCATION = [5, 6, 7]
TOLERANCE = 1e-5
_CONFIG = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 6}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def tiny():
    """A tiny Llama whose attention is not even."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**_CONFIG, **_HEADS, **_TOKENS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def adapter(model, folder, *, seed=1, tokens=tuple(INVOCATION), **options):
    """A random adapter that peft saves, an activated one unless ``tokens`` is None; and peft's model with it."""
    torch.manual_seed(seed)
    wanted = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 3, "lora_alpha": 7, **options}
    given = None if tokens is None else list(tokens)
    config = peft.LoraConfig(init_lora_weights=False, alora_invocation_tokens=given, task_type="CAUSAL_LM", **wanted)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def prompt():
    """Rows that invoke late, twice, never, and, padded on the left, in the middle."""
    ids = torch.randint(8, 40, (4, 12), generator=torch.Generator().manual_seed(2))
    ids[0, 7:10] = ids[1, 1:4] = ids[1, 6:9] = ids[3, 6:9] = torch.tensor(INVOCATION)
    ids[2, 9:11] = torch.tensor(INVOCATION[:2])
    ids[3, :4] = 0
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def part(given, first, last):
    """Some columns of a prompt, with the mask of all up to them."""
    columns = {name: given[name][:, first:last] for name in ("input_ids", "position_ids")}
    return {**columns, "attention_mask": given["attention_mask"][:, :last]}


def logits(model, **given):
    """The logits of a pass."""
    with torch.no_grad():
        return model(**given).logits


def close(given, found, wanted):
    """Compares the logits of tokens that are no padding."""
    seen = given["attention_mask"][:, -found.shape[1] :] != 0
    torch.testing.assert_close(found[seen], wanted[seen], atol=TOLERANCE, rtol=0)


def pieces(model, given, cuts, cache=None):
    """The logits of a prompt that is read in pieces, which begin at these columns, and its cache."""
    found = []
    for first, last in zip(cuts, [*cuts[1:], given["input_ids"].shape[1]], strict=True):
        with torch.no_grad():
            done = model(**part(given, first, last), past_key_values=cache, use_cache=True)
        cache = done.past_key_values
        found.append(done.logits)
    return torch.cat(found, 1), cache
