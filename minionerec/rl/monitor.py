"""What is watched while the policy learns: figures of every step, validation by beam search, and when to stop.

Nothing here keeps a state of its own beside the Trainer's log, which every checkpoint holds: the best validation, and how many
have gone by since, are read from it. So an interrupted run goes on as if it had not been interrupted.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models import unwrap_model_for_generation

from minionerec.config import RlConfig
from minionerec.errors import TrainingError
from minionerec.model import checkpoint
from minionerec.training.checkpoints import last_checkpoint
from minionerec.training.evaluator import Measure

log = logging.getLogger(__name__)

VALID = "valid_"  # before a metric's name in the log


def group_figures(completions: Sequence[Sequence[int]], target: Sequence[int]) -> dict[str, float]:
    """Figures of one group of G completions, best first.

    Returns:
        `HR@G`: 1 where the target is among them, else 0; `hit_rank`: its place, from 1, only where it is; `first_codes`: how
        many first codes they have between them, from 1 to G.
    """
    hits = [list(completion) == list(target) for completion in completions]
    figures = {f"HR@{len(hits)}": float(any(hits)), "first_codes": float(len({completion[0] for completion in completions}))}
    return figures | ({"hit_rank": hits.index(True) + 1.0} if any(hits) else {})


def with_signal(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """(rows,) bool: the rewards of the row's group are not all equal."""
    grouped = rewards.view(-1, group)
    spread = grouped.amax(1) - grouped.amin(1)
    return (spread > 1e-6 * grouped.abs().amax(1)).repeat_interleave(group)


def signal_share(rewards: torch.Tensor, weights: torch.Tensor, group: int) -> float:
    """The share of groups whose weighted rewards are not all equal; the others teach nothing.

    Args:
        rewards: (rows, rewards), whole groups of consecutive rows.
        weights: (rewards,).
    """
    return float(with_signal((rewards * weights).sum(-1), group).float().mean())


def level_means(values: torch.Tensor, mask: torch.Tensor, levels: int, accelerator: Accelerator) -> list[float]:
    """The mean of each level over the completions of all devices; levels that none has are left out.

    Args:
        values, mask: (rows, longest completion here), at most `levels` wide.
    """
    sums = torch.zeros(2, levels, device=values.device)
    sums[0, : values.shape[1]] = (values.detach() * mask).sum(0)
    sums[1, : values.shape[1]] = mask.sum(0)
    sums = accelerator.reduce(sums, reduction="sum")
    return (sums[0] / sums[1])[sums[1] > 0].tolist()


def validations(history: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of every validation in a Trainer's log, in order."""
    return [(row["step"], row[VALID + metric]) for row in history if VALID + metric in row]


def best(history: Sequence[Mapping[str, Any]], metric: str) -> tuple[int, float] | None:
    """(step, value) of the best validation in a Trainer's log, the earliest of equals; None where there is none."""
    return max(validations(history, metric), key=lambda found: found[1], default=None)


class Watch(TrainerCallback):
    """Validates at intervals, keeps the best model, and stops a run that learns nothing more or goes wrong.

    Args:
        config: which intervals and limits.
        measure: decodes the valid examples with the model that is trained; every device calls it.
        tokenizer: saved beside the best model.
        folder: of the checkpoints; the best model lies in `best-<step>` there.
        origin: the folder of the model that training began with, the best one until a step beats it.
    """

    trainer: Trainer  # set by the trainer that is watched

    def __init__(
        self, config: RlConfig, measure: Measure, tokenizer: PreTrainedTokenizerBase, folder: Path, origin: Path
    ) -> None:
        self._config, self._measure, self._tokenizer = config, measure, tokenizer
        self._folder, self._origin = folder, origin

    def best_model(self, history: Sequence[Mapping[str, Any]]) -> Path:
        """The folder of the best model that was validated; the SFT model's where none has beaten it."""
        found = best(history, self._config.best_metric)
        return self._folder / f"best-{found[0]}" if found and found[0] else self._origin

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether too many validations have gone by without a better one."""
        found = best(history, self._config.best_metric)
        later = [step for step, _ in validations(history, self._config.best_metric) if found and step > found[0]]
        return len(later) >= self._config.patience

    def check_step(self, loss: float, kl: Sequence[float]) -> None:
        """Look at a step before it changes the weights.

        Args:
            loss: over all devices.
            kl: mean over the micro-batch's tokens on all devices; empty where it is not measured.

        Raises:
            TrainingError: the loss or the KL is no finite number, or the KL exceeds `rl.max_kl`.
        """
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}", self.trainer.state.global_step + 1)
        limit = math.inf if self._config.max_kl is None else self._config.max_kl
        if kl and not kl[-1] <= limit:
            what = f"the KL divergence from the SFT model is {kl[-1]:.4g}, above rl.max_kl {limit:g}"
            self._diverged(what, self.trainer.state.global_step + 1)

    def _last_good(self) -> Path:
        """The best model, or where nothing is validated the last that was saved."""
        if self._config.evaluations:
            return self.best_model(self.trainer.state.log_history)
        return Path(last_checkpoint(self._folder) or self._origin)

    def _diverged(self, what: str, at: int) -> None:
        good = self._last_good()
        held = "the SFT model" if good == self._origin else f"the model of step {good.name.rpartition('-')[2]}"
        raise TrainingError(
            f"rl, step {at} of {self.trainer.state.max_steps}: {what}; training was stopped. The last good checkpoint is "
            f"{held}, {good}, which can be loaded as it is; copy it away before you change the configuration. Lower "
            f"rl.learning_rate, raise rl.beta, or try rl.normalise_over catalog."
        )

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate the SFT model, unless the run goes on from a checkpoint."""
        if self._config.evaluations and not validations(state.log_history, self._config.best_metric):
            self._validate()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate where it is due, and have that logged and saved.

        Raises:
            TrainingError: the weights are no finite numbers; they are not saved.
        """
        count = self._config.evaluations
        interval = max(1, math.ceil(state.max_steps / count)) if count else 0
        due = bool(interval) and (state.global_step % interval == 0 or state.global_step == state.max_steps)
        control.should_save |= due
        if not control.should_save:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in kwargs["model"].parameters()):
            self._diverged("its weights are no finite numbers", state.global_step)
        if due:
            self._validate()
            control.should_training_stop |= self.is_over(state.log_history)
        # No window of the log goes over a checkpoint: a resumed run writes the same rows. Logging a validation has cleared it.
        control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop the models that a better one, by now in the checkpoint's log, has replaced."""
        if state.is_world_process_zero:
            kept = self.best_model(state.log_history)
            for path in self._folder.glob("best-*"):
                if path != kept:
                    shutil.rmtree(path)

    def _validate(self) -> None:
        trainer, state, metric = self.trainer, self.trainer.state, self._config.best_metric
        before = best(state.log_history, metric)
        wrapped, accelerator = trainer.model_wrapped, trainer.accelerator
        with unwrap_model_for_generation(wrapped, accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()
            try:
                metrics = self._measure()
            finally:
                model.train(training)
            value = metrics[metric]
            if state.global_step and (before is None or value > before[1]) and trainer.is_world_process_zero():
                checkpoint.save(model, self._tokenizer, self._folder / f"best-{state.global_step}")
        # Not the trainer's own method: TRL's would close the window of the training figures here.
        Trainer.log(trainer, {VALID + name: figure for name, figure in metrics.items()})
        if trainer.is_world_process_zero():
            said = "" if before is None else f", best before {before[1]:.4f} at step {before[0]}"
            log.info("rl step %d: valid %s %.4f%s", state.global_step, metric, value, said)
