"""What a training stage is handed to validate its model with; `eval/validate.py` makes it, on a higher floor."""

from collections.abc import Callable, Mapping
from typing import Protocol

from transformers import PreTrainedModel

from minionerec.config import Config
from minionerec.prompts.builder import Prompts

Measure = Callable[[], Mapping[str, float]]  # ranking metrics of the model as it is now, the same on all devices


class Validator(Protocol):
    """Makes a `Measure`."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Prompts,
        config: Config,
        examples: int | None,
        metric: str,
    ) -> Measure:
        """A function that measures the model on `examples` of the valid split (None: all), by `metric` among others."""
        ...
