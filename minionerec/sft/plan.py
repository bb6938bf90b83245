"""What `minionerec sft` would take: its plan from the data, the SIDs and the model's configuration alone."""

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.model import adapters, checkpoint
from minionerec.model.outline import base_outline
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sft import train
from minionerec.sft.trainer import TreeCollator, tree_tokens
from minionerec.sft.trees import training_trees
from minionerec.sid.index import SidIndex
from minionerec.training.plan import Plan, Shape, planned_devices
from minionerec.tree import NO_TOKEN


def plans(config: Config, devices: int | None = None) -> list[Plan]:
    """One plan per way to distribute: ZeRO-2 and DDP on several devices.

    Args:
        devices: how many; None for those that run.

    Raises:
        ArtifactError: data or SIDs are not there.
        ConfigError: see `train.training_arguments`, `outline.base_outline`.
    """
    train.check_options(config.sft, devices)
    for name, command in ITEM_STAGES.items():
        require(config.folder / name, command)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    corpus = tokenizer_corpus(dataset, config.resolved_prompts, config.sft.task_names)
    model, tokenizer = base_outline(config.model, index, corpus, config.seed)
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts.for_training(), checkpoint.context_of(model))
    token_ids = prompts.sid_tokens
    model = adapters.attach(model, config.sft, token_ids[token_ids != NO_TOKEN].unique().tolist())
    training = training_trees(config.sft, config.seed, prompts)
    longest = max(map(tree_tokens, training.trees))
    arguments = train.training_arguments(config.sft, config.seed, config.folder / "sft", len(training.trees), longest, devices)
    work = train.work(training, arguments, TreeCollator(config.sft.row_tokens))
    shape = Shape.of(model)
    where = planned_devices(devices, config.sft.bf16, config.sft.gradient_checkpointing)
    return [Plan("sft", shape, work, some) for some in where]
