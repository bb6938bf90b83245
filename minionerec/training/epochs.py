"""Training epoch by epoch until a metric on valid stops rising, with a checkpoint after each; for models without a Trainer."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minionerec.distributed import wait_for_everyone
from minionerec.errors import ArtifactError

STATE = "state.safetensors"  # of a training, in its folder of checkpoints


@dataclass
class Course:
    """How far training has come, and what early stopping remembers.

    Attributes:
        epoch: epochs done.
        best: the best metric on valid so far, as it is compared.
        best_epoch: the epoch that reached it, from 0.
        waiting: epochs since then.
        log: one entry per epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = -1
    waiting: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Epochs:
    """When a training ends, and how its epochs are called.

    Attributes:
        name: of what is trained, for the screen.
        metric: on valid, higher is better.
        epochs: at most.
        patience: epochs without a better metric, after which training stops.
        equal_is_better: an epoch as good as the best takes its place.
        decimals: metrics are compared rounded to so many decimals; None compares them as they are.
        figures: gives further figures of the epoch that has just ended, validation included, for its entry in the log. Every
            process calls it.
    """

    name: str
    metric: str
    epochs: int
    patience: int
    equal_is_better: bool = False
    decimals: int | None = None
    figures: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        model: its weights are those of the best epoch in the end.
        optimizer: Adam over the model's parameters.
        accelerator: of the launch.
        checkpoints: the folder in which every epoch leaves a checkpoint; training resumes from one that is there.
    """

    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    checkpoints: Path


def resume(learner: Learner) -> tuple[Course, dict[str, Tensor]]:
    """The course and the best weights of an interrupted training, whose state model and optimizer take; else of a new one.

    Call it before the accelerator prepares model and optimizer.

    Raises:
        ArtifactError: the checkpoint is damaged.
    """
    if (learner.checkpoints / STATE).is_file():
        return restore(learner.checkpoints / STATE, learner.model, learner.optimizer)
    return Course(), copy_of(learner.model)


def run_epochs(
    learner: Learner,
    begun: tuple[Course, dict[str, Tensor]],
    schedule: Epochs,
    train: Callable[[int], float],
    validate: Callable[[], float],
) -> Course:
    """Train until early stopping.

    Args:
        begun: what `resume` gave.
        train: trains one epoch of this number, from 0; returns its mean loss.
        validate: the metric of the model as it is.
    """
    course, best = begun
    model, accelerator = learner.model, learner.accelerator
    console = Console(emoji=False, quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)
    while course.epoch < schedule.epochs and course.waiting < schedule.patience:
        began = time.monotonic()
        loss = train(course.epoch)
        trained = time.monotonic() - began
        if accelerator.num_processes > 1:
            share_statistics(model)
        value = broadcast_object_list([validate()])[0]  # one that differs in the last digit would stop one process alone
        compared = value if schedule.decimals is None else round(value, schedule.decimals)
        if compared > course.best or (schedule.equal_is_better and compared == course.best):
            course.best, course.best_epoch, course.waiting, best = compared, course.epoch, 0, copy_of(model)
        else:
            course.waiting += 1
        entry = {"epoch": course.epoch, "loss": loss, f"valid {schedule.metric}": value, "seconds": trained}
        course.log.append(entry | dict(schedule.figures()))
        measured = time.monotonic() - began - trained
        console.print(
            f"{schedule.name} epoch {course.epoch}: loss {loss:.4f}, valid {schedule.metric} {value:.4f} (best "
            f"{course.best:.4f} at {course.best_epoch}), {trained:.1f} s and {measured:.1f} s for valid"
        )
        course.epoch += 1
        if accelerator.is_main_process:
            store(learner.checkpoints / STATE, model, learner.optimizer, course, best)
        wait_for_everyone()
    model.load_state_dict(best)
    return course


def share_statistics(model: nn.Module) -> None:
    """Give a model the main process's running means and variances, which each process has counted over its own rows."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, values in model.state_dict().items():
        if name not in parameters and values.is_floating_point():
            values.copy_(broadcast(values, from_process=0))


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Set torch's random state for one epoch on one device, from the arguments alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0]))


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights as they are now."""
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def store(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, course: Course, best: dict[str, Tensor]) -> None:
    """Write a checkpoint in one file, through a temporary name: weights, the best weights, Adam's state, the course."""
    tensors = {f"model.{name}": values for name, values in model.state_dict().items()}
    tensors |= {f"best.{name}": values for name, values in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": values for name, values in state.items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: values.contiguous() for name, values in tensors.items()}, temporary, {"course": json.dumps(vars(course))})
    temporary.replace(path)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Course, dict[str, Tensor]]:
    """Read a checkpoint that `store` wrote into model and optimizer; returns the course and the best weights.

    Raises:
        ArtifactError: it is damaged.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
    try:
        with safe_open(path, "pt") as file:
            course = Course(**json.loads(file.metadata()["course"]))
            for name in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        model.load_state_dict(parts["model"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: not a checkpoint of this model ({error}). Delete {path.parent.parent} to train from the start."
        ) from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, values in parts["adam"].items():
        number, _, rest = name.partition(".")
        state.setdefault(int(number), {})[rest] = values
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return course, parts["best"]
