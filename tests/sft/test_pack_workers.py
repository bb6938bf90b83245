"""Batches that are packed by other processes while a step is computed are the same batches."""

import multiprocessing

import pytest
import torch
from transformers import TrainerCallback

from minionerec.config import ModelConfig, SftConfig
from minionerec.errors import ConfigError
from minionerec.model.dropout import add_dropout
from minionerec.prompts.builder import Prompts
from minionerec.sft.arguments import check_options, training_arguments
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.trees import build_trees, examples_by_task
from minionerec.training.checkpoints import MarkComplete, last_checkpoint
from tests.small import random_dataset, untrained_model


class Interrupt(TrainerCallback):
    """Stops in the midst of the second epoch, after a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def trained(folder, workers, *callbacks):
    """Losses and weights of a small training with dropout; it resumes from the folder's last checkpoint."""
    dataset, index = random_dataset()
    model, tokenizer = untrained_model(dataset, index, ModelConfig(hidden_size=16, intermediate_size=24, layers=1, heads=2))
    add_dropout(model, 0.2)
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), ["history_sid_to_sid"], "train", 3), 3).trees
    batch = max(len(trees) // 5, 2)  # five steps an epoch
    fields = SftConfig(batch_size=batch, micro_batch=batch, epochs=2, evaluations=3, pack_workers=workers)
    torch.manual_seed(5)
    trainer = TreeTrainer(
        model=model,
        args=training_arguments(fields, 0, folder, len(trees)),
        train_dataset=trees,
        eval_dataset=trees[:8],
        data_collator=TreeCollator(64),
        callbacks=[MarkComplete(), *callbacks],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    figures = ("step", "loss", "eval_loss", "grad_norm")
    log = [{name: row.get(name) for name in figures} for row in trainer.state.log_history]
    return log, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_with_and_without_workers_and_after_an_interruption(tmp_path):
    log, weights = trained(tmp_path / "none", 0)
    same_log, same_weights = trained(tmp_path / "two", 2)
    assert log == same_log and torch.equal(weights, same_weights)
    assert {row["eval_loss"] is not None for row in log} == {True, False}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", 2, Interrupt())
    assert last_checkpoint(tmp_path / "cut").endswith("checkpoint-4")
    resumed, resumed_weights = trained(tmp_path / "cut", 2)
    assert torch.equal(weights, resumed_weights) and resumed[-2:-1] == log[-2:-1]


def test_what_this_machine_does_not_have(monkeypatch):
    assert SftConfig().pack_workers is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"sft\.row_tokens is auto, which chooses by the memory of a GPU"):
        check_options(SftConfig(row_tokens="auto"))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: "spawn")
    check_options(SftConfig())
    with pytest.raises(ConfigError, match=r"sft\.pack_workers is 1, but processes are started by spawn"):
        check_options(SftConfig(pack_workers=1))
