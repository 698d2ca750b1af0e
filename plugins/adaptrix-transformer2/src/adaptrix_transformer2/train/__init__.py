"""Training of experts over a model in memory: on answers (``sft``), or on rewards (``reinforce``)."""

from __future__ import annotations

from adaptrix.extend import renamed_names
from adaptrix_transformer2.train.examples import Example
from adaptrix_transformer2.train.policy_gradient import Reward, mean_reward, reinforce
from adaptrix_transformer2.train.settings import Policy, TrainingSettings
from adaptrix_transformer2.train.setup import Trained
from adaptrix_transformer2.train.supervised import mean_loss, sft

__all__ = ["Example", "Policy", "Reward", "Trained", "TrainingSettings", "mean_loss", "mean_reward", "reinforce", "sft"]

__getattr__ = renamed_names(__name__, {"Course": "TrainingSettings"})
