"""Whether a model fits into this machine, asked before hours are spent. Torch is imported only for a large model."""

from pathlib import Path

import psutil

from minionerec.config import Config
from minionerec.errors import ConfigError

_FLOAT = 4  # bytes
_TRAINED = 4  # numbers per trained weight: itself, its gradient, AdamW's two moments
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, version 2 and 1


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container, and swap."""
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    for name in _LIMITS:
        try:
            limit = Path(name).read_text().strip()
        except OSError:
            continue
        memory = min(memory, int(limit)) if limit.isdigit() else memory
    return memory


def fewest_parameters(config: Config) -> int:
    """How many parameters the model has at least; 0 if that is not known before it is fetched."""
    model = config.model
    if model.init == "from_pretrained":
        files = Path(str(model.path)).glob("*.safetensors")  # none of a model of the hub
        return sum(file.stat().st_size for file in files if file.is_file()) // _FLOAT
    width = model.hidden_size
    attention = 4 * width * width + 3 * width  # queries, keys, values with biases, and the output
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    return (300 + sum(config.sid.sizes) * (not config.sid.shipped)) * width + model.layers * layer + width


def check_model_memory(config: Config) -> None:
    """Refuse a model that cannot be trained in this machine's memory, whatever the batch.

    Raises:
        ConfigError: weights, gradients and optimiser alone take more; the message has the numbers.
    """
    parameters, memory = fewest_parameters(config), machine_memory()
    per_weight = _FLOAT * (_TRAINED if config.sft.train == "full" else 1)
    if parameters * per_weight <= memory:
        return
    import torch

    if torch.cuda.is_available():  # the processes then share gradients and moments, or keep them on the GPUs
        memory = max(memory, sum(torch.cuda.mem_get_info(device)[1] for device in range(torch.cuda.device_count())))
        if parameters * per_weight <= memory:
            return
    advice = "choose a smaller model (model.path), or sft.train lora"
    if config.model.init == "from_scratch":
        advice = "lower model.hidden_size, model.intermediate_size or model.layers"
    raise ConfigError(
        f"The model has at least {parameters:,} parameters, which take {parameters * per_weight / 1e9:,.1f} GB in training "
        f"(weights{', gradients and optimiser' * (config.sft.train == 'full')}), but this machine has {memory / 1e9:,.1f} GB; "
        f"{advice}."
    )
