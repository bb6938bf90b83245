"""A learning rate that follows the model: a step whose policy has moved too far from the reference model is a shorter one.

Which rate is too high depends on the model and on its precision, and shows only when the KL divergence grows from step to step
until nothing of the SFT model is left. `rl.kl_brake` multiplies the learning rate of a step by limit / KL if the step's KL is
above the limit. AdamW's steps are about as long as its learning rate, whatever the gradient. So while the KL grows, steps
shrink in the same proportion, and growth that was exponential becomes linear. When the KL falls, the rate rises again.

The factor is a function of the step's own KL, which is a mean over all its micro-batches and processes. So it has no state: a
resumed run and one on another number of processes take the same steps.
"""

import logging
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minionerec.config import RlConfig

log = logging.getLogger(__name__)

LOGGED = "kl_brake"  # the factor's name in the log


class KlBrake(TrainerCallback):
    """Lowers the learning rate of steps with a high KL.

    Args:
        limit: nats; up to this KL a step keeps its learning rate.

    Attributes:
        trainer: whose steps these are; it must call `watch` after each micro-batch's loss and before its backward pass, in
            which DeepSpeed takes the step.
    """

    trainer: Trainer

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._kl: list[float] = []  # of the micro-batches of this step so far
        self._acted = False  # in the step before

    @classmethod
    def of(cls, config: RlConfig, pretrained: bool) -> "KlBrake | None":
        """The brake that `rl.kl_brake` asks for, if it asks for one.

        Args:
            pretrained: SFT began with a pretrained model.
        """
        limit = config.kl_limit(pretrained)
        return None if limit is None else cls(limit)

    @property
    def factor(self) -> float:
        """What the step's learning rate is multiplied by: 1, or limit / KL."""
        kl = sum(self._kl) / max(len(self._kl), 1)
        return self._limit / kl if kl > self._limit else 1.0

    def watch(self, kl: list[float]) -> None:
        """Take in the KL of a micro-batch and set the rate for the step as far as it is known.

        Args:
            kl: over all processes; empty if no token of the micro-batch counts.
        """
        self._kl += kl
        schedule: Any = self.trainer.lr_scheduler
        schedule = getattr(schedule, "scheduler", schedule)  # accelerate wraps it
        for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate * self.factor

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget the step before."""
        self._kl.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the factor, and say when it begins to act. The schedule has set the next step's rate by now."""
        factor = self.factor
        trainer: Any = self.trainer
        trainer._metrics["train"][LOGGED].append(factor)
        if factor < 1 and not self._acted and state.is_world_process_zero:
            log.warning(
                "rl, step %d of %d: the KL divergence from the SFT model is %.4g, above rl.kl_brake %g: from here on such "
                "steps have a lower learning rate, this one %.3g times the schedule's (kl_brake in the log). If most steps are "
                "such, lower rl.learning_rate.",
                *(state.global_step, state.max_steps, self._limit / factor, self._limit, factor),
            )
        self._acted = factor < 1
