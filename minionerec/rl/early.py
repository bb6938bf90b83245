"""What RL refuses before anything is loaded. A pipeline asks here before SFT is paid for. Nothing here imports torch."""

from collections.abc import Collection

from minionerec.artifacts import MANIFEST
from minionerec.config import Config, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.sid.index import SidIndex
from minionerec.training.early import check_baseline, check_cutoff, check_mixture, check_trackers, most_examples, rows_of
from minionerec.training.holdout import rl_split


def check_early(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse settings that cannot work, as far as the stages that have finished by now tell.

    Args:
        pending: stages that run before RL and may change what they have left so far.

    Raises:
        ConfigError: a tracker is missing, lists are shorter than the metric that chooses the best model, the model has a second
            distribution or never writes a SID in SFT, a step or a group is larger than what there is, or the mixture that
            validations rank with cannot be fitted.
        ArtifactError: a reward needs a baseline that is not trained, or the run's data or SIDs are damaged.
    """
    rl, run = config.rl, config.folder
    check_one_distribution(config.model.text_output)
    if not config.sft.writes_sids:
        raise ConfigError(
            f"sft.tasks is [{', '.join(config.sft.task_names)}]: none of them has a SID as its answer, so RL would start from "
            "a model that has never written one. Leave RL out (minionerec data prepare, sid, sft, eval), or add "
            "history_sid_to_sid."
        )
    check_trackers("rl.report_to", rl.report_to)
    if rl.evaluations:
        check_cutoff("rl.best_metric", rl.best_metric, config)
    if config.mixes_in("rl"):
        check_mixture(config, pending)
    if "collaborative" in rl.rewards:
        check_baseline("The reward collaborative (rl.rewards, rl.collaborative_model)", rl.collaborative_model, config, pending)
    if "data" in pending:
        return
    examples = most_examples(run, rl.tasks, rl.task_shares, rl_split(config))
    if examples is not None and (prompts := min(examples, rl.max_examples or examples)) < rl.prompts_per_step:
        raise ConfigError(
            f"rl.prompts_per_step is {rl.prompts_per_step}, but there are only {prompts} prompts; lower it (or see rl.tasks, "
            "rl.task_shares and rl.max_examples)."
        )
    if "sid" in pending:
        check_group(rl, rows_of(run, "catalog"), 0)
    else:
        check_group(rl, *_sids_and_hidden(config))


def _sids_and_hidden(config: Config) -> tuple[int | None, int]:
    """How many SIDs the catalog has (None if that is not known yet), and how many a prompt hides at most."""
    run = config.folder
    if not (run / "sid" / MANIFEST).is_file() or not (run / "data" / MANIFEST).is_file():
        return None, 0
    dataset = Dataset.load(run / "data")
    sids = len({*map(tuple, SidIndex.load(run / "sid", dataset).codes.tolist())})
    longest = dataset.split(rl_split(config))["history"].list.len().max() if hides_history(config) else 0
    return sids, longest if isinstance(longest, int) else 0


def hides_history(config: Config) -> bool:
    """Whether groups leave out the items of their row's history: as evaluation does, and always if they are drawn uniformly."""
    return config.eval.exclude_history or config.rl.rollouts == "uniform"


def check_one_distribution(text_output: bool) -> None:
    """Refuse a model whose distribution over the catalog is not written code by code.

    Args:
        text_output: whether it has a second one, of its text vectors.

    Raises:
        ConfigError: it has.
    """
    if text_output:
        raise ConfigError(
            "model.text_output is true: such a model is a mixture of what it writes code by code and of a distribution over "
            "whole items, and RL trains the former only. Leave RL out (minionerec sft, eval, report), or train SFT with "
            "model.text_output false."
        )


def check_group(config: RlConfig, sids: int | None, hidden: int) -> None:
    """Refuse a group of distinct SIDs that the catalog is too small for.

    Args:
        sids: how many the catalog has; None if that is not known yet.
        hidden: the largest number of items that is hidden from a prompt.

    Raises:
        ConfigError: it is too small; the message says how many SIDs there are.
    """
    if sids is None or config.rollouts == "sampling" or config.objective == "exact":
        return
    if sids - hidden < config.num_generations:  # at least: items that share a SID hide one SID together
        without = f", and {hidden} items of a history are left out (eval.exclude_history or rl.rollouts)" if hidden else ""
        raise ConfigError(
            f"rl.num_generations is {config.num_generations}, but the catalog has only {sids} SIDs{without}; lower it."
        )
