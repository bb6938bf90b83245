"""Whether a model fits into this machine, asked before hours are spent. Torch is imported only for a large model."""

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from minionerec.config import BaselineConfig, Config, SidConfig
from minionerec.errors import ConfigError
from minionerec.model import pretrained

if TYPE_CHECKING:
    from minionerec.training.plan import Plan

log = logging.getLogger(__name__)
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
        files = pretrained.cached(str(model.path)).glob("*.safetensors")  # none of a model of the hub
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
    numbers = _TRAINED if config.sft.train == "full" else 1
    advice = "choose a smaller model (model.path), or sft.train lora"
    if config.model.init == "from_scratch":
        advice = "lower model.hidden_size, model.intermediate_size or model.layers"
    _check("The model", fewest_parameters(config), numbers, advice)


def check_baseline_memory(config: BaselineConfig, items: int) -> None:
    """Refuse a baseline that cannot be trained in this machine's memory.

    Args:
        items: of the catalog; 0 if they are not known yet.

    Raises:
        ConfigError: weights, gradients and optimiser alone take more.
    """
    width = config.hidden_size or 0
    parameters = items * width + (config.layers or 1) * width * width  # at least: an embedding, and a matrix a layer
    _check("The baseline", parameters, _TRAINED, "lower baseline.hidden_size or baseline.layers")


def check_lego_memory(parameters: int) -> None:
    """Refuse a content recommender that cannot be trained in this machine's memory.

    Args:
        parameters: of its parts, without a pretrained language model.

    Raises:
        ConfigError: weights, gradients and optimiser alone take more.
    """
    _check("The content recommender", parameters, _TRAINED, "lower lego.width, lego.hidden or lego.mlp")


def check_vectors_memory(config: BaselineConfig, size: int) -> None:
    """Refuse a baseline whose vectors of all items and rows do not fit into this machine's memory, before it is trained.

    Args:
        size: of these vectors (bytes); 0 for a baseline that leaves none.

    Raises:
        ConfigError: the vectors, and the copy that is written, take more.
    """
    needed = 2 * size
    if needed > (memory := machine_memory()):
        digits = " or baseline.digits" * (config.model == "rpg")  # a row has `hidden_size` numbers for each digit
        raise ConfigError(
            f"The vectors that {config.model} leaves for other stages, one per item and per row of the three splits, take "
            f"{needed / 1e9:,.1f} GB while they are written, but this machine has {memory / 1e9:,.1f} GB; lower "
            f"baseline.hidden_size{digits}."
        )


def check_quantizer_memory(config: SidConfig) -> None:
    """Refuse a neural quantizer that cannot be trained in this machine's memory.

    Raises:
        ConfigError: weights, gradients and optimiser alone take more.
    """
    if config.method not in ("rq-vae", "letter", "rq-kmeans-plus"):
        return
    widths = [*config.rqvae.hidden, config.rqvae.latent]
    parameters = 2 * sum(before * after for before, after in itertools.pairwise(widths))  # encoder and decoder
    _check("The quantizer", parameters, _TRAINED, "lower sid.rqvae.hidden or sid.rqvae.latent")


def check_search_memory(config: Config, items: int) -> None:
    """Refuse a search that is too wide for this machine's memory.

    Args:
        items: of the catalog, which has at most as many SIDs; 0 if they are not known yet.

    Raises:
        ConfigError: the mask by which beams see their own ancestors, and what a mixture gives every item, alone take more.
    """
    beams = min(config.eval.num_beams, items)
    needed = config.eval.batch_size * beams * beams  # one byte for each pair of beams of a level
    if config.mixture.components:  # a component's answer, their sum, and its sums and maxima by prefix
        needed += config.eval.batch_size * items * 5 * 8
    if needed > machine_memory() and needed > (memory := _memory()):
        raise ConfigError(
            f"eval.batch_size {config.eval.batch_size} and eval.num_beams {config.eval.num_beams} need at least "
            f"{needed / 1e9:,.1f} GB, but this machine has {memory / 1e9:,.1f} GB; lower one of them."
        )


def warn_about_memory(plan: "Plan") -> None:
    """Say it in the log if a training is expected to take more memory than there is; estimates may err, so it still begins."""
    needed = plan.memory_per_process * plan.devices.count
    if needed > machine_memory() and needed > (memory := _memory()):
        log.warning(
            "%s is expected to take %.1f GB, but this machine has %.1f GB: lower the micro-batch, or set "
            "%s.gradient_checkpointing.",
            *(plan.stage, needed / 1e9, memory / 1e9, plan.stage),
        )


def _check(what: str, parameters: int, numbers: int, advice: str) -> None:
    needed = parameters * numbers * _FLOAT
    if needed > machine_memory() and needed > (memory := _memory()):
        raise ConfigError(
            f"{what} has at least {parameters:,} parameters, which take {needed / 1e9:,.1f} GB in training "
            f"(weights{', gradients and optimiser' * (numbers > 1)}), but this machine has {memory / 1e9:,.1f} GB; {advice}."
        )


def _memory() -> int:
    """Bytes of memory that a training may use: those of the GPUs, or of the machine if that is more or if it has none."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return max(machine_memory(), sum(torch.cuda.mem_get_info(device)[1] for device in gpus))
