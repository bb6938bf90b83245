"""Neural sequential recommenders with a table of items, made from the section `baseline` of the configuration."""

from collections.abc import Callable

from minionerec.config import NEURAL_BASELINES, BaselineConfig
from minionerec.model.sequential.implementation import implementation, options_of
from minionerec.model.sequential.sequential_model import SequentialModel


def model_class(name: str) -> type[SequentialModel]:
    """The class of a neural baseline."""
    return implementation(NEURAL_BASELINES[name])


def make(config: BaselineConfig, items: int) -> SequentialModel:
    """A model with fresh weights from torch's random state.

    Raises:
        ConfigError: an option that the model does not take, or a bad value.
    """
    chosen = model_class(config.model)
    model: Callable[..., SequentialModel] = chosen
    return model(items, config.max_history, options_of(config, chosen))


def count_parameters(model: SequentialModel) -> int:
    """Parameters, trainable or not; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
