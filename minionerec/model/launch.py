"""What the launcher decides: how a global batch splits over devices, and the precision both sides must agree on."""

import os

from minionerec.artifacts import distributed_state
from minionerec.errors import ConfigError

# Read before transformers, whose TrainingArguments overwrite the variable with their own value.
_LAUNCHED_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION")


def split_batch(total_field: str, total: int, micro_field: str, micro: int) -> tuple[int, int]:
    """Split a step's batch over devices and micro-batches.

    Args:
        total_field, micro_field: the names of the configuration's fields, for the message.
        total: units per optimiser step over all devices.
        micro: most units at once on one device.

    Returns:
        units at once on one device, and gradient accumulation steps.

    Raises:
        ConfigError: it does not split evenly.
    """
    world = distributed_state().num_processes
    micro = min(micro, total // world)
    if micro == 0 or total % (world * micro):
        raise ConfigError(
            f"{total_field} {total} does not split into {world} device(s) times micro-batches of {micro_field} {micro}; "
            f"choose a multiple of {world * max(micro, 1)}."
        )
    return micro, total // (world * micro)


def check_precision(field: str, bf16: bool) -> None:
    """Refuse a launcher whose mixed precision contradicts the configuration; transformers would stop with a traceback.

    Raises:
        ConfigError: `accelerate launch` was told another precision than `field` says.
    """
    if _LAUNCHED_PRECISION and (_LAUNCHED_PRECISION == "bf16") != bf16:
        wanted, fitting = ("bf16", "false") if bf16 else ("no", "true")
        raise ConfigError(
            f"accelerate launches with mixed precision {_LAUNCHED_PRECISION}, but {field} is {str(bf16).lower()}. "
            f"Pass --{field} {fitting}, or --mixed_precision {wanted} to the launcher."
        )
