"""The frame that both training stages share: load what a training begins with, name the launch, save the results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from minionerec.artifacts import ITEM_STAGES, Draft, require
from minionerec.config import Config, run_file
from minionerec.data.dataset import Dataset
from minionerec.distributed import expect_no_gpu, is_main_process
from minionerec.model.checkpoint import context_of
from minionerec.prompts.builder import Prompts
from minionerec.sid.index import SidIndex
from minionerec.training.card import write_card
from minionerec.training.checkpoints import write_log
from minionerec.training.launch import launch_of
from minionerec.training.plan import Plan

LoadModel = Callable[[Dataset, SidIndex], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
WriteCurves = Callable[[Path, Path, str], None]  # of a log (first) as a page (second) with a title (third)


@dataclass(frozen=True)
class Begun:
    """What a training, or its plan, begins with.

    Attributes:
        stage: `sft` or `rl`.
        parameters: how many the model has before adapters are attached to it.
    """

    stage: str
    config: Config
    prompts: Prompts
    model: PreTrainedModel
    parameters: int


def begin(config: Config, stage: str, load_model: LoadModel) -> Begun:
    """Load data, SIDs, model and tokenizer, and set the seed of everything that follows.

    Args:
        load_model: gives the model and its tokenizer, which has the SID tokens; for a plan the model has no weights.

    Raises:
        ArtifactError: data or SIDs are missing.
        CatalogError: the tokenizer lacks a SID token, or splits one.
    """
    for name, command in ITEM_STAGES.items():
        require(config.folder / name, command)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    expect_no_gpu()
    set_seed(config.seed)
    model, tokenizer = load_model(dataset, index)
    prompts = Prompts(dataset, index, tokenizer, config.prompts_for_training, context_of(model))
    prompts.sid_tokens  # noqa: B018  refuses the tokenizer now, not after an hour of tokenizing
    return Begun(stage, config, prompts, model, sum(parameter.numel() for parameter in model.parameters()))


def announce(begun: Begun, trainer: Trainer, batches: str) -> None:
    """Check that the launch is what was asked for, and describe it on the screen.

    Args:
        batches: the batches of a step, in words.

    Raises:
        ConfigError: the launcher asked for other processes or another distribution than what runs.
    """
    launched = launch_of(trainer.accelerator)
    if is_main_process():
        print(f"{begun.stage}: {launched}; {batches}", flush=True)
        if items := begun.prompts.texts_with_tokens:
            print(f"{begun.stage}: the texts of {items} items hold SID or special tokens; these are broken up", flush=True)


def finish(
    begun: Begun,
    draft: Draft,
    trainer: Trainer,
    plan: Plan,
    figures: Mapping[str, Any],
    save_model: Callable[[Path], None],
    write_curves: WriteCurves | None,
) -> None:
    """Write the trained model with its card, the log and its curves. The figures go into the manifest.

    Args:
        figures: of the training, by name, for card and manifest.
        save_model: writes the model into a folder; the main process calls it.
        write_curves: None for no page.
    """
    if trainer.is_world_process_zero():
        config, log_file = begun.config, draft.path / "log.jsonl"
        save_model(draft.path / "model")
        write_card(draft.path / "model", begun.stage, config, begun.prompts.dataset, begun.prompts.index, figures)
        write_log(trainer.state, log_file)
        if write_curves is not None:
            write_curves(log_file, draft.path / "curves.html", f"{run_file.name_of(config)}: {begun.stage.upper()}")
    tasks = {"tasks": plan.work.tasks} if plan.work.tasks else {}
    draft.metrics.update(**figures, **tasks, **plan.metrics())
