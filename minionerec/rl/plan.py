"""What `minionerec rl` would take: its plan from the data, the SIDs and the model's configuration alone."""

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.model import checkpoint
from minionerec.model.outline import base_outline, outline
from minionerec.model.plan import Plan, Shape, planned_devices
from minionerec.prompts.builder import sample_examples, tokenizer_corpus
from minionerec.rl import train
from minionerec.sid.index import SidIndex


def plans(config: Config, devices: int | None = None) -> list[Plan]:
    """One plan per way to distribute: ZeRO-2 and DDP on several devices.

    The model is that of `sft/` where the stage has run, otherwise what it would begin from; RL keeps float32 weights.

    Args:
        devices: how many; None for those that run.

    Raises:
        ArtifactError: data or SIDs are not there.
        ConfigError: see `train.grpo_arguments`, `outline.outline`.
    """
    for name, command in ITEM_STAGES.items():
        require(config.folder / name, command)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    if (policy := config.folder / "sft" / "model").is_dir():
        model, tokenizer = outline(policy)
    else:
        corpus = tokenizer_corpus(dataset, config.asked, config.sft.task_names)
        model, tokenizer = base_outline(config.model, index, corpus, config.seed)
        model = model.float()
    token_ids = checkpoint.sid_token_ids(tokenizer, index)
    examples = sample_examples(
        config.rl.tasks,
        dataset,
        index,
        tokenizer,
        split="train",
        count=config.rl.max_examples,
        seed=config.seed,
        context=getattr(model.config, "max_position_embeddings", None),
        prompts=config.asked.for_training(),
    )
    examples = train.whole_steps(examples, config.rl.prompts_per_step)
    arguments = train.grpo_arguments(config.rl, index.levels, config.seed, config.folder / "rl", len(examples), devices)
    work = train.work(examples, token_ids, arguments, config.rl)
    shape = Shape.of(model)
    where = planned_devices(devices, config.rl.bf16, config.rl.gradient_checkpointing)
    return [Plan("rl", shape, work, some) for some in where]
