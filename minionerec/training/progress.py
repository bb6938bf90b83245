"""Training progress on one line: steps, rate, remaining time and the latest figures. A log file gets ten lines."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_FIGURES = ("loss", "eval_loss", "reward", "kl")


class StepBar(TrainerCallback):
    """A progress bar over the optimiser steps; only the main process draws it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.latest: dict[str, float] = {}
        self.progress: Progress | None = None
        self.tenths = 0  # of the steps, for a log file: it gets a line per tenth

    @classmethod
    def install(cls, trainer: Trainer, name: str) -> None:
        """Put the bar in place of transformers' own, which prints a line for every log entry."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(cls(name))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw the bar; a resumed run begins at its step."""
        if state.is_world_process_zero:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.progress.start()
            self.progress.add_task(self.name, total=state.max_steps, completed=state.global_step, figures="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by a step."""
        if self.progress:
            task = self.progress.tasks[0]
            figures = [f"{task.speed:.2f} steps/s"] if task.speed else []
            figures += [f"{name} {value:.4g}" for name, value in self.latest.items()]
            self.progress.update(task.id, completed=state.global_step, figures=" ".join(figures))
            tenths = state.global_step * 10 // state.max_steps
            if tenths > self.tenths and not self.progress.console.is_terminal:
                print(f"{self.name} step {state.global_step}/{state.max_steps} {' '.join(figures)}", flush=True)
            self.tenths = tenths

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the latest figures."""
        self.latest |= {name: value for name, value in (logs or {}).items() if name in _FIGURES}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        if self.progress:
            self.progress.stop()
