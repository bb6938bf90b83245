"""What trainings that are chosen on valid ask of transformers' `Trainer`, whatever they learn."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments


def validated_arguments(
    folder: Path, micro: int, accumulation: int, interval: int, metric: str, seed: int, **fields: Any
) -> TrainingArguments:
    """Transformers' arguments: a validation and a checkpoint after every `interval` steps, the best model at the end.

    Args:
        folder: of the checkpoints.
        micro, accumulation: what one device computes at once, and how often before a step.
        metric: chooses the checkpoint; `loss` is better if it is lower, all others if they are higher.
        fields: what the training sets itself.
    """
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{metric}",
        greater_is_better=metric != "loss",
        logging_first_step=True,
        dataloader_drop_last=True,
        restore_callback_states_from_checkpoint=True,  # early stopping resumes its count
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        **fields,
    )
