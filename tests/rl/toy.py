"""A toy of the rl stage in memory: 30 items, a random policy whose beams are well separated, and its trainers.

The private methods of TRL that tests need are called here and nowhere else.
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from minionerec.config import ModelConfig, RlConfig
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.encode import TokenExample
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.brake import KlBrake
from minionerec.rl.monitor import Watch
from minionerec.rl.rewards import REWARDS
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.rows import token_rows
from minionerec.rl.train import make_trainer
from minionerec.rl.trainer import TreeGRPOTrainer, grouped
from minionerec.tree import CatalogTrie
from tests.small import listed_examples, random_dataset

G = 4
STEP = {"prompts_per_step": 6, "micro_batch_prompts": 3, "learning_rate": 1e-3}
# Each trainer needs these, and nobody changes them; of the model each gets a copy.
toy_dataset = functools.cache(random_dataset)
toy_policy = functools.cache(checkpoint.load)
FIELDS = {"num_generations": G, "rewards": {"rule": 1.0}, **STEP}


def policy_folder(folder: Path) -> Path:
    """Save the policy; TRL reads the reference model from the same place."""
    dataset, index = toy_dataset()
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    checkpoint.save(model, tokenizer, folder)
    return folder


@functools.cache
def toy_examples(policy: str) -> list[TokenExample]:
    """The rows of the data set before rollouts are asked for; nobody changes them."""
    return listed_examples(Prompts(*toy_dataset(), toy_policy(policy)[1]), "history_sid_to_sid")[:24]


def trainer_of(
    policy: Path,
    out: Path,
    kind: type[GRPOTrainer] | None = None,
    *,
    filtered: bool = False,
    pretrained: bool = False,
    watch: Watch | None = None,
    adjust: Callable[[GRPOConfig], GRPOConfig] = lambda arguments: arguments,
    **fields: Any,
) -> Any:
    """The trainer that these fields of section `rl` ask for.

    Args:
        kind: a class to make instead, with our rollouts and rewards: TreeGRPOTrainer, or TRL's own.
        filtered: rollouts leave histories out.
        pretrained: the policy counts as a pretrained model.
        adjust: changes TRL's arguments.
    """
    dataset, index = toy_dataset()
    policy_model, tokenizer = toy_policy(str(policy))
    model = copy.deepcopy(policy_model)
    trie = CatalogTrie.from_codes(checkpoint.sid_token_ids(tokenizer, index))
    examples = toy_examples(str(policy))
    config = RlConfig(**{**FIELDS, **fields})
    rows = token_rows(examples, trie, dataset if filtered or config.rollouts == "uniform" else None)
    arguments: dict[str, Any] = {
        "model": model,
        "args": adjust(grpo_arguments(config, index.levels, 0, out, len(rows))),
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    functions = {name: REWARDS[name] for name in config.rewards}
    if kind is None:
        arguments |= {"watch": watch, "brake": KlBrake.of(config, pretrained)}
        return make_trainer(config, trie, functions, seed=0, filtered=filtered, **arguments)
    arguments["reward_funcs"] = [grouped(name, reward, G) for name, reward in functions.items()]
    arguments["rollout_func"] = Rollouts(trie, config, tokenizer.pad_token_id, 0, filtered=filtered)
    if issubclass(kind, TreeGRPOTrainer):
        arguments |= {"trie": trie, "normalise_over": config.normalise_over, "watch": watch}
    return kind(**arguments)


def trie_of(trainer: GRPOTrainer) -> CatalogTrie:
    """The toy's catalog."""
    return CatalogTrie.from_codes(checkpoint.sid_token_ids(trainer.processing_class, toy_dataset()[1]))


def rows_of(trainer: GRPOTrainer, prompts: int = 3) -> list[dict[str, Any]]:
    """The first rows of the data set, each for a whole group."""
    return [dict(row) for row in trainer.train_dataset.select(range(prompts)) for _ in range(G)]


def gradients(trainer: GRPOTrainer) -> torch.Tensor:
    """All gradients of the policy in one vector."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def figures(trainer: GRPOTrainer) -> dict[str, list[float]]:
    """What has been collected for the next row of the log."""
    return trainer._metrics["train"]


def scored_rollouts(trainer: GRPOTrainer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """TRL's batch of rollouts with their advantages."""
    return trainer._generate_and_score_completions(rows)


def completion_logprobs(
    trainer: GRPOTrainer, ids: torch.Tensor, mask: torch.Tensor, tokens: int, kind: type[GRPOTrainer] = TreeGRPOTrainer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of the last `tokens` tokens, by a class's own way."""
    logprobs, entropies, _ = kind._get_per_token_logps_and_entropies(
        trainer, trainer.model, ids, mask, tokens, compute_entropy=True
    )
    return logprobs, entropies


def micro_batches(trainer: GRPOTrainer, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The micro-batches of a step, which the trainer makes and keeps when it is asked for the first."""
    trainer._prepare_inputs(rows)
    return trainer._buffered_inputs


def one_step(trainer, rows, replay=None, micro_batches=1):
    """Loss and gradients of the policy, moved off the reference model; the rollouts are the trainer's own, or `replay`.

    With several micro-batches, of as many consecutive rows each, the losses are added up.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = micro_batches
    if replay is not None:
        leaves = trie_of(trainer).walk(torch.tensor(replay))[:, -1].tolist()
        rollouts = {"completion_ids": replay, "logprobs": None, "leaf": leaves}
        trainer.rollout_func = lambda prompts, _: {"prompt_ids": prompts, **rollouts}
    scored = scored_rollouts(trainer, rows)
    trainer.model.zero_grad()
    loss = torch.zeros(())
    for part in split_tensor_dict(scored, micro_batches):
        part_loss = trainer.compute_loss(trainer.model, part)
        part_loss.backward()
        loss += part_loss.detach()
    return loss, gradients(trainer), scored


def completions_of(scored):
    """The SIDs of scored rollouts, as token ids without padding."""
    pairs = zip(scored["completion_ids"], scored["completion_mask"], strict=True)
    return [ids[is_token.bool()].tolist() for ids, is_token in pairs]
