"""Training checkpoints that load in any number of processes, under ZeRO-2, under DDP or alone.

Trainer's own checkpoint holds the optimiser as the launch split it: DeepSpeed refuses the checkpoint of another number of
processes, and nothing else reads DeepSpeed's files. Here the optimiser's moments are stored whole and by parameter name
(`optimizer.safetensors`), with float32 copies of weights that train in a lower precision. The schedule is a small JSON file.
Trainer adds its arguments and the random states as pickles and reads back only the random states; an artefact holds neither.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import Trainer, trainer

from minionerec.artifacts import read_json, write_json
from minionerec.errors import ArtifactError

_OPTIMIZER, _SCHEDULER = "optimizer.safetensors", "scheduler.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class PortableTrainer(Trainer):
    """A Trainer (AdamW) whose checkpoints do not depend on how it was launched."""

    model: torch.nn.Module
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does, but read the weights of a checkpoint in the same way with and without DeepSpeed."""
        with _weights_without_deepspeeds_files(self):
            return super().train(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        tensors = {}
        for name, value in self._optimizer_state():  # under ZeRO-2 every process has a part, so all of them loop
            if self.args.should_save:
                tensors[name] = value.detach().cpu().contiguous()
        if self.args.should_save:
            save_file(tensors, Path(output_dir) / _OPTIMIZER)
            write_json(Path(output_dir) / _SCHEDULER, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore what `_save_optimizer_and_scheduler` wrote.

        Raises:
            ArtifactError: the files are missing or damaged.
        """
        if checkpoint is None:
            return
        path = Path(checkpoint) / _OPTIMIZER
        try:
            with safe_open(path, framework="pt") as file:
                self._set_optimizer_state({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"{path}: cannot be read ({error}). Delete {path.parent.parent} and train from the start."
            ) from None
        self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / _SCHEDULER))
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_best_model(self) -> None:
        # Not the path that the state holds: the run may have been moved between two attempts.
        self._load_from_checkpoint(str(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"))

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def _optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Of each parameter that trains, by name: moments, step and, if it is not float32, the master weights."""
        if self.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            zero = self.model_wrapped.optimizer
            _link(zero)
            step = next(iter(zero.optimizer.state.values()))["step"]
            for name, parameter in self._trained():
                for moment in _MOMENTS:
                    yield f"{moment}.{name}", safe_get_full_optimizer_state(parameter, moment)
                yield f"step.{name}", torch.as_tensor(step, dtype=torch.float32).clone()
                if parameter.dtype != torch.float32:
                    yield f"master.{name}", safe_get_full_fp32_param(parameter)
            return
        state = self.optimizer.state
        for name, parameter in self._trained():
            if parameter in state:
                for key in (*_MOMENTS, "step"):
                    yield f"{key}.{name}", state[parameter][key]

    def _set_optimizer_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.is_deepspeed_enabled:
            self._set_zero_state(tensors)
            return
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names = {parameter: name for name, parameter in self._trained()}
        state = {}
        for number, parameter in enumerate(parameters):
            if f"step.{names[parameter]}" in tensors:
                state[number] = {key: tensors[f"{key}.{names[parameter]}"] for key in (*_MOMENTS, "step")}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        with torch.no_grad():
            for name, parameter in self._trained():
                if f"master.{name}" in tensors:
                    parameter.copy_(tensors[f"master.{name}"])

    def _set_zero_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give each process its part of the whole tensors."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        zero = self.model_wrapped.optimizer
        step = max((value for name, value in tensors.items() if name.startswith("step.")), default=torch.zeros(()))
        for flat in zero.single_partition_of_fp32_groups:  # as AdamW does at its first step
            zero.optimizer.state[flat] = {"step": step.clone(), **{key: torch.zeros_like(flat) for key in _MOMENTS}}
        _link(zero)
        for name, parameter in self._trained():
            master = tensors.get(f"master.{name}", parameter.detach()).to(parameter.device, torch.float32)
            safe_set_full_fp32_param(parameter, master)
            for moment in _MOMENTS:
                if f"{moment}.{name}" in tensors:
                    safe_set_full_optimizer_state(parameter, tensors[f"{moment}.{name}"].to(parameter.device), moment)


def _link(zero: Any) -> None:
    """Tell DeepSpeed where in its flat state the moments of each parameter are.

    DeepSpeed does this itself at the first step, but too early: right after the first group of parameters, when the further
    groups have no state yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


@contextmanager
def _weights_without_deepspeeds_files(portable: PortableTrainer) -> Iterator[None]:
    """Replace the function with which Trainer reads DeepSpeed's files by one that reads a checkpoint's weights."""
    original = trainer.deepspeed_load_checkpoint
    trainer.deepspeed_load_checkpoint = lambda engine, path, **_: portable._load_from_checkpoint(path)
    try:
        yield
    finally:
        trainer.deepspeed_load_checkpoint = original
