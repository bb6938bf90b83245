"""The class behind a baseline's name, and the options that the configuration sets for it."""

import dataclasses
from importlib import import_module
from typing import Any

from minionerec.config import BASELINE_OPTIONS, BASELINES, BaselineConfig
from minionerec.errors import ConfigError


def implementation(name: str) -> type[Any]:
    """The class that `BASELINES` names for a baseline; its module is imported only now."""
    module, _, class_name = BASELINES[name].implementation.rpartition(".")
    return getattr(import_module(f"minionerec.baselines.{module}"), class_name)


def options_of(config: BaselineConfig) -> Any:
    """The options of the configured baseline: its class's `options`, with the values that the configuration sets.

    Raises:
        ConfigError: the configuration sets an option that the baseline does not take.
    """
    options = implementation(config.model).options
    accepted = {field.name for field in dataclasses.fields(options)}
    values = {name: getattr(config, name) for name in BASELINE_OPTIONS if getattr(config, name) is not None}
    for name in values:
        if name not in accepted:
            raise ConfigError(
                f"baseline.{name} is set, but {config.model} does not take it. "
                f"It takes {', '.join(sorted(accepted)) or 'no option'}."
            )
    return options(**values)
