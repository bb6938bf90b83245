"""What `minionerec rl` would take: its plan from the data, the SIDs and the model's configuration alone."""

import random
from collections.abc import Sequence
from functools import partial
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from minionerec.config import Config, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.model import checkpoint
from minionerec.model.base import base_model
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.prompts.encode import TokenExample
from minionerec.recommend.cache.vectors import shape_of_vectors
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.early import check_one_distribution
from minionerec.rl.rows import training_prompts
from minionerec.sid.index import SidIndex
from minionerec.training.plan import Devices, PackedShape, Plan, Shape, Validation, Work, planned_devices, sample_batches
from minionerec.training.stage import begin
from minionerec.tree import Branch, CatalogTrie, pack, without_padding
from minionerec.tree.architecture import check_length
from minionerec.tree.catalog_logprobs import PrefixRows, number_of_rows
from minionerec.tree.leaf_component import leaf_model


def planned_work(
    examples: Sequence[TokenExample],
    trie: CatalogTrie,
    arguments: GRPOConfig,
    config: RlConfig,
    validation: Validation | None = None,
) -> Work:
    """What training on these prompts takes.

    Rollouts are not known before the policy exists. SIDs drawn at random stand for them; these share less of their beginnings,
    so the count of positions is rather too high. Groups that `refill` replaces count with all their rounds.

    Args:
        trie: the valid SIDs.
        validation: see `validation_of`.
    """
    group, levels = config.num_generations, trie.depth
    micro, accumulation = arguments.per_device_train_batch_size // group, arguments.gradient_accumulation_steps
    sids = [without_padding(sid) for sid in trie.sids.tolist()]
    chance = random.Random(int(arguments.seed))
    exact = config.objective == "exact"

    def packed(batch: Sequence[TokenExample]) -> PackedShape:
        longest = max(len(example.prompt) for example in batch)
        if exact:
            return _whole_catalog(trie, len(batch), longest)
        branches = [Branch(example.prompt, sid) for example in batch for sid in chance.sample(sids, min(group, len(sids)))]
        if config.sft_weight:
            branches += [Branch(example.prompt, example.completion) for example in batch]
        return PackedShape.of(pack(branches, row_tokens=longest + (group + 1) * (levels - 1)).tensors())

    sizes = [group * (len(example.prompt) + levels) for example in examples]
    sample, largest = sample_batches(examples, sizes, micro, packed, int(arguments.seed))
    if exact:  # a longer prompt may take fewer rows, and so less memory: any may be the longest of the costliest batch
        at_most = {length: number for number, length in enumerate(sorted(len(one.prompt) for one in examples), 1)}
        largest = tuple(_whole_catalog(trie, min(micro, number), length) for length, number in at_most.items())
    longest_prompt = max(len(example.prompt) for example in examples)
    rolled_out = micro * (longest_prompt + group * (levels - 1)) if config.decodes else 0  # tokens; a last code is not read
    rounds = 1 + config.refill_rounds if config.dynamic_sampling == "refill" else 1
    whole_step = cast(int, arguments.steps_per_generation) > 1  # its rollouts are made at once, see `objective_arguments`
    at_once = accumulation if whole_step else 1
    over_vocabulary = config.normalise_over == "vocabulary" and config.rollouts == "beams"  # all others rank over the catalog
    return Work(
        unit="prompts",
        units=len(examples),
        steps=arguments.max_steps,
        micro=micro,
        accumulation=accumulation,
        tokens=sum(sizes),
        labels=len(examples) * group * levels,
        sample=sample,
        largest=largest,
        rollout=rolled_out * rounds // config.updates_per_rollout,
        cached=rolled_out * at_once,
        reference=arguments.beta > 0,
        head_rows=at_once * micro * group if over_vocabulary and config.decodes else 0,
        beams=config.rollouts == "beams",
        validation=validation,
    )


def _whole_catalog(trie: CatalogTrie, prompts: int, longest: int) -> PackedShape:
    """A micro-batch of the objective `exact`: the whole catalog after each prompt, see `tree.catalog_logprobs`."""
    rows, nodes = PrefixRows.of(trie, number_of_rows(trie, longest)).tokens.shape
    return PackedShape(prompts * rows, longest + nodes, prompts * rows * (nodes + 1))


def validation_of(
    config: Config, model: PreTrainedModel, examples: Sequence[TokenExample], sids: tuple[int, int]
) -> Validation | None:
    """What validations of the policy hold; None if there are none.

    Args:
        sids: how many there are at most, and the levels of one.
    """
    longest = max(len(example.prompt) for example in examples)
    return Validation.of(config, model, longest, sids) if config.rl.evaluations else None


def _policy_without_weights(
    config: Config, dataset: Dataset, index: SidIndex
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of `sft/`; if that stage has not run, the one that it would begin with. RL keeps float32 weights."""
    if (policy := config.folder / "sft" / "model").is_dir():
        return checkpoint.load(policy, weights=False)
    corpus = tokenizer_corpus(dataset, config.prompts_for_training, config.sft.task_names)
    vectors = partial(shape_of_vectors, config, dataset)
    model, tokenizer = base_model(config.model, index, corpus, config.seed, vectors=vectors, weights=False)
    return model.float(), tokenizer


def disk_bytes(parameters: int, moving_reference: bool) -> int:
    """Bytes that the stage writes at most, in float32.

    The model, the best so far and the one that replaces it; weights and two moments in the last and in the next checkpoint, and
    in both the reference model if it moves.
    """
    return 4 * (3 + 2 * 3 + 2 * moving_reference) * parameters


def plan_of(shape: Shape, work: Work, devices: Devices, config: RlConfig) -> Plan:
    """The stage's plan."""
    return Plan("rl", shape, work, devices, disk_bytes(shape.parameters, config.sync_reference is not None))


def plans(config: Config, devices: int | None = None) -> list[Plan]:
    """One plan per way to distribute: ZeRO-2 and DDP on several devices.

    Args:
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ArtifactError: data or SIDs are missing.
        ConfigError: `rl.prompts_per_step` does not split over the devices, there are too few prompts for a step, the model has
            a second distribution, or its configuration cannot be read.
    """
    check_one_distribution(config.model.text_output)
    begun, rl = begin(config, "rl", partial(_policy_without_weights, config)), config.rl
    check_one_distribution(leaf_model(begun.model) is not None)
    examples = training_prompts(config, begun.prompts)
    trie = CatalogTrie.from_codes(begun.prompts.sid_tokens)
    arguments = grpo_arguments(rl, trie.levels, config.seed, config.folder / "rl", len(examples), devices)
    validation = validation_of(config, begun.model, examples, begun.prompts.index.codes.shape)
    work, shape = planned_work(examples, trie, arguments, rl, validation), Shape.of(begun.model)
    check_length(begun.model, max(len(example.prompt) for example in examples) + trie.depth - 1, work.longest_row)
    return [plan_of(shape, work, way, rl) for way in planned_devices(devices, rl.bf16, rl.gradient_checkpointing)]
