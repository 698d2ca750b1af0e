"""Adapters of every kind that a slot takes, and the ways to choose among them."""

import torch

from tests.helpers.attached import TARGETS, saved

VARIANTS = {
    "a": {"rank": 3},
    "b": {"rank": 8, "use_rslora": True},
    "c": {"rank": 2, "use_dora": True},
    "d": {"rank": 5, "lora_bias": True},
}
TOKENS = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(7))


def made(model, folder):
    """An adapter of each kind for a model, by name."""
    targets = TARGETS.get(model.config.model_type, ["q_proj", "k_proj", "down_proj"])
    for seed, (name, options) in enumerate(VARIANTS.items()):
        saved(model, folder / name, seed=seed, target_modules=targets, **options)
    return {name: folder / name for name in VARIANTS}


def answer(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def chosen(session, choice):
    return session.route(choice) if isinstance(choice, list) else session.use(choice)
