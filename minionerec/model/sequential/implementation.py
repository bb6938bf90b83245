"""The class behind a line of the table of the baselines, and the options that the configuration sets for it."""

import dataclasses
from importlib import import_module
from typing import Any

from minionerec.config import BASELINE_OPTIONS, BaselineConfig
from minionerec.config.baseline import Baseline
from minionerec.errors import ConfigError


def implementation(baseline: Baseline) -> type[Any]:
    """The class that a line of `BASELINES` names; its module is imported only now.

    As an import written out, it may name only what stands on the caller's own floor or below: here a line of
    `NEURAL_BASELINES`.
    """
    module, _, class_name = baseline.implementation.rpartition(".")
    return getattr(import_module(f"minionerec.{module}"), class_name)


def options_of(config: BaselineConfig, model: type[Any]) -> Any:
    """The options of the configured baseline: its class's `options`, with the values that the configuration sets.

    Args:
        model: the class of `config.model`.

    Raises:
        ConfigError: the configuration sets an option that the baseline does not take.
    """
    accepted = {field.name for field in dataclasses.fields(model.options)}
    values = {name: getattr(config, name) for name in BASELINE_OPTIONS if getattr(config, name) is not None}
    if refused := [name for name in values if name not in accepted]:
        null = " ".join(f"--baseline.{name} null" for name in refused)
        raise ConfigError(
            f"baseline.{refused[0]} is set, but {config.model} does not take it. "
            f"It takes {', '.join(sorted(accepted)) or 'no option'}. Leave it out, or pass {null} if it stands in the run.yaml "
            "of a run, which keeps what another baseline was told."
        )
    return model.options(**values)
