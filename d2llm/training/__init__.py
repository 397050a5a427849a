"""Distilling a teacher's scores into a student."""

from d2llm.training.config import TrainConfig, load_config
from d2llm.training.run import train
from d2llm.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "TrainConfig", "load_config", "train"]
