"""Neural baselines, made from the configuration."""

from collections.abc import Callable
from typing import cast

from minionerec.baselines.implementation import implementation, options_of
from minionerec.baselines.models.sequential_model import SequentialModel
from minionerec.config import BaselineConfig


def model_class(name: str) -> type[SequentialModel]:
    """The class of a neural baseline."""
    return cast(type[SequentialModel], implementation(name))


def make(config: BaselineConfig, items: int) -> SequentialModel:
    """A model with fresh weights from torch's random state.

    Raises:
        ConfigError: an option that the model does not take, or a bad value.
    """
    model: Callable[..., SequentialModel] = model_class(config.model)
    return model(items, config.max_history, options_of(config))


def count_parameters(model: SequentialModel) -> int:
    """Parameters, trainable or not; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
