"""A few steps of transformers' Trainer, for modules of ours and models of peft alike."""

import torch
from transformers import TrainerCallback, TrainingArguments


def rows(count=12):
    torch.manual_seed(1)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 40, (count, 6)).tolist()]


def settings(**options):
    """Options of a Trainer that clips every step, and decays weights that are large enough to tell.

    Some gradients are nothing but rounding; AdamW's usual eps of 1e-8 makes steps of these.
    """
    own = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "adam_epsilon": 1e-4, "seed": 3}
    clipped = {"weight_decay": 0.1, "max_grad_norm": 0.01}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    return own | clipped | quiet | options


def arguments(folder, **options):
    return TrainingArguments(str(folder), **settings(**options))


class StopAt(TrainerCallback):
    """Ends a training after a step, as a machine does that is taken away."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step >= self.step
