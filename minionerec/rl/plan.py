"""What `minionerec rl` would take: its plan from the data, the SIDs and the model's configuration alone."""

import random

from trl import GRPOConfig

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.config import Config, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.model import checkpoint
from minionerec.model.outline import base_outline, outline
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.encode import TokenExample
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.rows import training_prompts
from minionerec.sid.index import SidIndex
from minionerec.training.plan import PackedShape, Plan, Shape, Work, planned_devices, sample_batches
from minionerec.tree import Branch, CatalogTrie, pack, without_padding


def work(examples: list[TokenExample], trie: CatalogTrie, arguments: GRPOConfig, config: RlConfig) -> Work:
    """What training on these prompts takes.

    Rollouts are not known before the policy is there: SIDs drawn at random stand for them, which share less of their
    beginnings, so that positions are counted rather too high. Groups that are refilled count with all their rounds.

    Args:
        trie: the valid SIDs.
    """
    group, levels = config.num_generations, trie.depth
    micro, accumulation = arguments.per_device_train_batch_size // group, arguments.gradient_accumulation_steps
    sids = [without_padding(sid) for sid in trie.sids.tolist()]
    prefixes = sum(len(tokens) for tokens in trie.tokens[:-1])
    chance = random.Random(int(arguments.seed))
    exact = config.objective == "exact"

    def packed(some: list[TokenExample]) -> PackedShape:
        longest = max(len(example.prompt) for example in some)
        if exact:  # the whole catalog behind each prompt, see `tree.whole`
            return PackedShape(len(some), longest + prefixes, len(some) * (prefixes + 1))
        branches = [Branch(example.prompt, sid) for example in some for sid in chance.sample(sids, min(group, len(sids)))]
        if config.sft_weight:
            branches += [Branch(example.prompt, example.completion) for example in some]
        return PackedShape.of(pack(branches, row_tokens=longest + (group + 1) * (levels - 1)).tensors())

    sizes = [group * (len(example.prompt) + levels) for example in examples]
    sample, largest = sample_batches(examples, sizes, micro, packed, int(arguments.seed))
    rolled = 0 if exact else micro * (max(len(example.prompt) for example in examples) + group * (levels - 1))
    whole_step = config.dynamic_sampling != "none"  # see `objective_arguments`
    return Work(
        unit="prompts",
        units=len(examples),
        steps=arguments.max_steps,
        micro=micro,
        accumulation=accumulation,
        tokens=sum(sizes),
        labels=sum(group * levels for _ in examples),
        sample=sample,
        largest=largest,
        rollout=rolled * (1 + config.refill_rounds if config.dynamic_sampling == "refill" else 1),
        cached=rolled * (accumulation if whole_step else 1),
        reference=arguments.beta > 0,
    )


def plans(config: Config, devices: int | None = None) -> list[Plan]:
    """One plan per way to distribute: ZeRO-2 and DDP on several devices.

    The model is that of `sft/` where the stage has run, otherwise what it would begin from; RL keeps float32 weights.

    Args:
        devices: how many; None for those that run.

    Raises:
        ArtifactError: data or SIDs are not there.
        ConfigError: see `grpo_arguments`, `training_prompts`, `outline.outline`.
    """
    for name, command in ITEM_STAGES.items():
        require(config.folder / name, command)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    if (policy := config.folder / "sft" / "model").is_dir():
        model, tokenizer = outline(policy)
    else:
        corpus = tokenizer_corpus(dataset, config.resolved_prompts, config.sft.task_names)
        model, tokenizer = base_outline(config.model, index, corpus, config.seed)
        model = model.float()
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts.for_training(), checkpoint.context_of(model))
    examples = training_prompts(config, prompts)
    arguments = grpo_arguments(config.rl, index.levels, config.seed, config.folder / "rl", len(examples), devices)
    planned = work(examples, CatalogTrie.from_codes(prompts.sid_tokens), arguments, config.rl)
    shape = Shape.of(model)
    where = planned_devices(devices, config.rl.bf16, config.rl.gradient_checkpointing)
    return [Plan("rl", shape, planned, some) for some in where]
