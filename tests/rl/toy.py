"""A toy of the rl stage in memory: 30 items, a random policy whose beams are well separated, and its trainers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import split_tensor_dict

from minionerec.config import ModelConfig, RlConfig
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import build_examples, tokenizer_corpus
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.rewards import REWARDS
from minionerec.rl.rows import token_rows
from minionerec.rl.train import make_trainer
from minionerec.rl.trainer import TreeGRPOTrainer, grouped
from minionerec.tree import CatalogTrie
from tests.small import random_dataset

G = 4
STEP = {"prompts_per_step": 6, "micro_batch_prompts": 3, "learning_rate": 1e-3}
FIELDS = {"num_generations": G, "rewards": {"rule": 1.0}, **STEP}


def policy_folder(folder: Path) -> Path:
    """Save the policy; TRL reads the reference from the same place."""
    dataset, index = random_dataset()
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    checkpoint.save(model, tokenizer, folder)
    return folder


def trainer_of(policy: Path, out: Path, kind: Callable | None = None, filtered: bool = False, **fields: Any) -> TreeGRPOTrainer:
    """The trainer that these fields of section `rl` ask for, or one of another class.

    Args:
        filtered: histories are left out of the rollouts.
    """
    dataset, index = random_dataset()
    model, tokenizer = checkpoint.load(str(policy))
    ids = checkpoint.sid_token_ids(tokenizer, index)
    examples = build_examples("history_sid_to_sid", dataset, index, tokenizer, split="train")[:24]
    rows = token_rows(examples, ids, dataset if filtered else None)
    config = RlConfig(**{**FIELDS, **fields})
    arguments = {
        "model": model,
        "args": grpo_arguments(config, index.levels, 0, out, len(rows)),
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    functions = {name: REWARDS[name] for name in config.rewards}
    if kind is not None:
        return kind(reward_funcs=[grouped(name, reward, G) for name, reward in functions.items()], **arguments)
    return make_trainer(config, CatalogTrie.from_codes(ids), 0, functions, filtered=filtered, **arguments)


def trie_of(trainer: TreeGRPOTrainer) -> CatalogTrie:
    """The toy's catalog."""
    return CatalogTrie.from_codes(checkpoint.sid_token_ids(trainer.processing_class, random_dataset()[1]))


def rows_of(trainer: TreeGRPOTrainer, prompts: int = 3) -> list[dict[str, Any]]:
    """The first rows of the data set, each for a whole group."""
    return [dict(row) for row in trainer.train_dataset.select(range(prompts)) for _ in range(G)]


def gradients(trainer: TreeGRPOTrainer) -> torch.Tensor:
    """All gradients of the policy in one vector."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def one_step(trainer, rows, replay=None, micro_batches=1):
    """Loss and gradients of the policy, moved off the reference; the rollouts are the trainer's own or given ones.

    Where there are several micro-batches, as many consecutive rows each, the losses are added up.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = micro_batches
    if replay is not None:
        trainer.rollout_func = lambda prompts, _: {"prompt_ids": prompts, "completion_ids": replay, "logprobs": None}
    scored = trainer._generate_and_score_completions(rows)
    trainer.model.zero_grad()
    loss = torch.zeros(())
    for part in split_tensor_dict(scored, micro_batches):
        one = trainer._compute_loss(trainer.model, part)
        one.backward()
        loss += one.detach()
    return loss, gradients(trainer), scored


def completions_of(scored):
    """The SIDs of scored rollouts, as token ids without padding."""
    pairs = zip(scored["completion_ids"], scored["completion_mask"], strict=True)
    return [ids[kept.bool()].tolist() for ids, kept in pairs]
