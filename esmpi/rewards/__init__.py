"""Rewards that ask a model: objects of a task's file that are reward functions.

from esmpi.rewards import Judge, RewardModel

quality = Judge("http://localhost:8000/v1", "org/model", rubric="Rate this answer from 0 to 10: {completion}")
preference = RewardModel("org/reward-model")
"""

from esmpi.rewards.judge import Judge
from esmpi.rewards.model import RewardModel

__all__ = ["Judge", "RewardModel"]
