"""What is watched while the policy learns: figures of every step, validation by beam search, and when to stop.

Nothing here keeps a state of its own. The best validation, and how many validations there were after it, are read from the
Trainer's log, which every checkpoint holds. So an interrupted run resumes as if it had not been interrupted.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
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

log = logging.getLogger(__name__)
Evaluator = Callable[[], Mapping[str, float]]  # such as a `RankingEvaluator`

VALID = "valid_"  # before a metric's name in the log


def group_figures(completions: Sequence[Sequence[int]], target: Sequence[int]) -> dict[str, float]:
    """Figures of one group of G completions, best first.

    Returns:
        `HR@G`: 1 if the target is among them, else 0; `hit_rank`: its rank, from 1, only if it is; `first_codes`: how many
        different first codes the completions have, from 1 to G.
    """
    hits = [list(completion) == list(target) for completion in completions]
    figures = {f"HR@{len(hits)}": float(any(hits)), "first_codes": float(len({completion[0] for completion in completions}))}
    return figures | ({"hit_rank": hits.index(True) + 1.0} if any(hits) else {})


def with_signal(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """(rows,) bool: the rewards of the row's group are not all equal."""
    grouped = rewards.view(-1, group)
    width = grouped.amax(1) - grouped.amin(1)
    # Sums of float32 rewards in another order differ in their last digits; that is no signal.
    return (width > 1e-6 * grouped.abs().amax(1)).repeat_interleave(group)


def signal_share(rewards: torch.Tensor, weights: torch.Tensor, group: int) -> float:
    """The share of groups whose weighted rewards are not all equal; a group of equal rewards teaches nothing.

    Args:
        rewards: (rows, rewards), whole groups of consecutive rows.
        weights: (rewards,).
    """
    return float(with_signal((rewards * weights).sum(-1), group).float().mean())


def level_means(values: torch.Tensor, mask: torch.Tensor, levels: int, accelerator: Accelerator) -> list[float]:
    """The mean of each level over the completions of all processes; a level that no completion has is left out.

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
    """(step, value) of the best validation in a Trainer's log, the earliest of equals; None without a validation."""
    return max(validations(history, metric), key=lambda validation: validation[1], default=None)


def interval(steps: int, count: int, updates: int) -> int:
    """After how many steps something is due that is wanted `count` times. A run can resume only where a rollout is used up.

    >>> interval(steps=100, count=8, updates=1), interval(steps=100, count=8, updates=4)
    (13, 16)

    Args:
        updates: steps from the same rollouts.
    """
    return math.ceil(max(1, math.ceil(steps / count)) / updates) * updates


class Watch(TrainerCallback):
    """Validates at intervals, keeps the best model, and stops a run that learns nothing more or goes wrong.

    Args:
        config: which intervals and limits.
        evaluator: ranking metrics of the model in training; every process calls it.
        tokenizer: saved with the best model.
        folder: of the checkpoints; the best model lies in `best-<step>` there.
        origin: the folder of the model that training began with, the best one until a step beats it.
    """

    trainer: Trainer  # set by the trainer that is watched

    def __init__(
        self, config: RlConfig, evaluator: Evaluator, tokenizer: PreTrainedTokenizerBase, folder: Path, origin: Path
    ) -> None:
        self._config, self._evaluator, self._tokenizer = config, evaluator, tokenizer
        self._folder, self._origin = folder, origin

    def best_model(self, history: Sequence[Mapping[str, Any]]) -> Path:
        """The folder of the best validated model; the SFT model's if no step has beaten it."""
        best_validation = best(history, self._config.best_metric)
        if best_validation is None or best_validation[0] == 0:  # step 0 is the SFT model
            return self._origin
        return self._folder / f"best-{best_validation[0]}"

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether there were `rl.patience` validations after the best one."""
        best_validation = best(history, self._config.best_metric)
        if best_validation is None:
            return False
        later = [step for step, _ in validations(history, self._config.best_metric) if step > best_validation[0]]
        return len(later) >= self._config.patience

    def check_step(self, loss: float, kl: Sequence[float]) -> None:
        """Look at a step before it changes the weights.

        Args:
            loss: over all processes.
            kl: mean over the micro-batch's tokens on all processes; empty if it is not measured.

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
        """The best model; if nothing is validated, the last one saved."""
        if self._config.evaluations:
            return self.best_model(self.trainer.state.log_history)
        return Path(last_checkpoint(self._folder) or self._origin)

    def _diverged(self, what: str, at: int) -> None:
        folder = self._last_good()
        model = "the SFT model" if folder == self._origin else f"the model of step {folder.name.rpartition('-')[2]}"
        raise TrainingError(
            f"rl, step {at} of {self.trainer.state.max_steps}: {what}; training was stopped. The last good checkpoint is "
            f"{model}, {folder}, which can be loaded as it is; copy it away before you change the configuration. Lower "
            f"rl.learning_rate, raise rl.beta, or try rl.normalise_over catalog."
        )

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate the SFT model, unless the run resumes from a checkpoint."""
        if self._config.evaluations and not validations(state.log_history, self._config.best_metric):
            self._validate()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate if it is due, and have the validation logged and saved.

        Raises:
            TrainingError: the weights are no finite numbers; they are not saved.
        """
        count = self._config.evaluations
        steps = interval(state.max_steps, count, self._config.updates_per_rollout) if count else 0
        due = bool(steps) and (state.global_step % steps == 0 or state.global_step == state.max_steps)
        control.should_save |= due
        if not control.should_save:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in kwargs["model"].parameters()):
            self._diverged("its weights are no finite numbers", state.global_step)
        if due:
            self._validate()
            control.should_training_stop |= self.is_over(state.log_history)
        # A row of the log averages the steps since the last one. It ends at every checkpoint, so that a resumed run writes the
        # same rows. Logging a validation has cleared the flag, so it is set last.
        control.should_log = True

    def _validate(self) -> None:
        trainer, state, metric = self.trainer, self.trainer.state, self._config.best_metric
        before = best(state.log_history, metric)
        wrapped, accelerator = trainer.model_wrapped, trainer.accelerator
        with unwrap_model_for_generation(wrapped, accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()
            try:
                metrics = self._evaluator()
            finally:
                model.train(training)
            value = metrics[metric]
            if state.global_step and (before is None or value > before[1]) and trainer.is_world_process_zero():
                checkpoint.save(model, self._tokenizer, self._folder / f"best-{state.global_step}")
        # Trainer's method, not TRL's: that one would also log the training figures, in the midst of their row.
        Trainer.log(trainer, {VALID + name: figure for name, figure in metrics.items()})
        if trainer.is_world_process_zero():
            comparison = "" if before is None else f", best before {before[1]:.4f} at step {before[0]}"
            log.info("rl step %d: valid %s %.4f%s", state.global_step, metric, value, comparison)
