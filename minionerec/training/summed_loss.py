"""A Trainer that computes its own summed loss: the part of tree training that does not depend on what is trained.

The loss of a step is the mean over all its labels, whatever the accumulation and the number of devices. A loss or a gradient
that is not finite stops the training before the step is taken, and the batch is kept. A validation counts every example once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, RandomSampler
from transformers.trainer_utils import EvalLoopOutput

from minionerec.errors import TrainingError
from minionerec.training.memory import enough_memory
from minionerec.training.resume import PortableTrainer

COUNTED_LABELS = "shift_labels"  # Trainer counts the labels of a step in an entry of this name


@dataclass(frozen=True)
class Advice:
    """What messages name: a section of the configuration, and what helps where the memory does not suffice.

    Attributes:
        section: its `learning_rate`, `warmup`, `max_grad_norm` and `bf16` are those of the training.
        unit: what a micro-batch consists of.
        weights, step, validation, checkpoint: what to do if memory runs out in the optimiser, in a step, in a validation, and
            when a checkpoint is written; whole sentences.
    """

    section: str
    unit: str
    weights: str
    step: str
    validation: str
    checkpoint: str

    @property
    def setup(self) -> tuple[str, str]:
        """For `enough_memory`, before the first step."""
        return "while the training was set up", self.weights

    @property
    def remedy(self) -> str:
        """What helps against a loss or a gradient that is not finite."""
        section = self.section
        return (
            f"Lower {section}.learning_rate, lengthen {section}.warmup, set {section}.max_grad_norm to 1, or compute in float32"
            f" ({section}.bf16 false)."
        )


class SummedLossTrainer(PortableTrainer):
    """A Trainer whose loss is a sum over labels, divided by the labels of the whole step.

    A subclass gives `advice`, and the summed loss with its number of labels in `_training_loss` and `_validation_loss`. Its
    collator puts the labels that are counted into `COUNTED_LABELS`.

    Args:
        failed: folder for batches whose loss or gradient is not finite; None for the Trainer's output folder.
        args, kwargs: passed to Trainer.
    """

    advice: Advice

    def __init__(self, *args: Any, failed: Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed = Path(str(self.args.output_dir)) if failed is None else failed
        self._micro_batches: list[dict[str, Any]] = []  # of the step that is being computed
        self._begun = False
        self.model_accepts_loss_kwargs = True  # count the labels of a step for every model: the loss is computed here

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as PortableTrainer does, with errors that say what to change.

        Raises:
            TrainingError: a loss or a gradient is not finite (the batch is kept), or the memory does not suffice.
        """
        with enough_memory(self._memory_advice):
            return super().train(*args, **kwargs)

    def _memory_advice(self) -> tuple[str, str]:
        if not self._begun:
            return self.advice.setup
        return f"in the optimiser, at step {self.state.global_step + 1}", self.advice.weights

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, as Trainer computes it, kept until its gradient is known to be finite."""
        self._begun = True
        self._micro_batches.append(inputs)
        units = self.args.per_device_train_batch_size
        with enough_memory(
            lambda: (f"at step {self.state.global_step + 1} with micro-batches of {units} {self.advice.unit}", self.advice.step)
        ):
            return super().training_step(model, inputs, *args, **kwargs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradients; a norm that is not finite stops the training before Trainer takes the step.

        DeepSpeed has taken the step by now. The weights in memory may be lost, but no checkpoint was written with them.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._refuse("gradient", f"step {self.state.global_step + 1}", self._micro_batches)
        self._micro_batches.clear()
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with enough_memory(
            lambda: (f"while the checkpoint of step {self.state.global_step} was written", self.advice.checkpoint)
        ):
            super()._save_checkpoint(*args, **kwargs)

    def _refuse(self, what: str, where: str, batches: Sequence[dict[str, Any]], cause: str = "") -> None:
        """Keep the micro-batches whose loss or gradient is not finite, each tensor under its batch's number, and stop."""
        path = self.failed / f"not-finite-{where.replace(' ', '-')}-process-{self.args.process_index}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        named = ((f"{number}.{name}", value) for number, batch in enumerate(batches) for name, value in batch.items())
        save_file({name: value.cpu().clone() for name, value in named if torch.is_tensor(value)}, path)
        raise TrainingError(
            f"The {what} of {where} is not finite (learning rate {self._get_learning_rate():.3g}). The batch is kept in "
            f"{path}. {cause}{self.advice.remedy}"
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Weighted cross-entropy of the labels, summed and divided by the labels of the whole step over all devices."""
        if return_outputs:
            raise TypeError(
                f"{type(self).__name__} computes the loss only, no outputs; its evaluation loop does not call this."
            )
        loss, count = self._training_loss(model, inputs)
        if not torch.isfinite(loss):
            self._refuse("loss", f"step {self.state.global_step + 1}", [inputs])
        if num_items_in_batch is None:
            return loss / count
        devices = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1  # DDP averages over them
        return loss * devices / num_items_in_batch

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        # Whole steps only: transformers would make a short step of the micro-batches that remain at an epoch's end, and the
        # number of steps would depend on how a batch is split. Each epoch leaves out different trees.
        trees = cast(list[Any], self.train_dataset if train_dataset is None else train_dataset)
        step = self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return RandomSampler(trees, num_samples=len(trees) // step * step)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All validation trees, each in one process only: Trainer's sampler repeats some to make even shares."""
        trees = cast(list[Any], self.eval_dataset if eval_dataset is None else eval_dataset)
        share: Any = trees[self.args.process_index :: self.args.world_size]
        workers = self.args.dataloader_num_workers
        size = self.args.per_device_eval_batch_size
        return DataLoader(share, batch_size=size, collate_fn=self.data_collator, num_workers=workers)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The mean loss over all validation labels, where Trainer would weigh batches by rows; and the subclass's metrics."""
        phase = f"validation after step {self.state.global_step}"
        model = self.accelerator.unwrap_model(self.model).eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad(), enough_memory(lambda: (f"in the {phase}", self.advice.validation)):
            for inputs in dataloader:
                loss, count = self._validation_loss(model, self._prepare_inputs(inputs))
                if not torch.isfinite(loss):
                    self._refuse("loss", phase, [inputs], "The steps before had finite gradients, so training diverges. ")
                totals += torch.stack([loss.double(), torch.tensor(float(count), dtype=torch.float64, device=loss.device)])
            loss_sum, labels = self.accelerator.reduce(totals, "sum").tolist()
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._validated(loss_sum, labels).items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _training_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """The summed loss of a micro-batch, with gradient, and its number of labels."""
        return self._validation_loss(model, inputs)

    def _validation_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """The summed loss of a batch of a validation, and its number of labels."""
        raise TypeError(f"{type(self).__name__} computes no loss.")

    def _validated(self, loss_sum: float, labels: float) -> dict[str, float]:
        """The metrics of a validation, by name; every process calls it once all batches are computed."""
        return {"loss": loss_sum / labels}
