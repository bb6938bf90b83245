"""Which rows SFT and RL are trained on, and the check that the two agree (`rl.holdout`, `rl.prompts`)."""

from typing import Any

import numpy as np

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import Config
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.holdout import held_out_rows
from minionerec.errors import ConfigError


def holdout_section(config: Config) -> dict[str, dict[str, Any]]:
    """What the key of SFT says of the rows that it leaves out; empty if it leaves out none, so that the key stays as it was."""
    rl = config.rl
    return {} if rl.holdout == "none" else {"holdout": {"rows": rl.holdout, "share": rl.holdout_share}}


def sft_rows(config: Config, dataset: Dataset) -> np.ndarray | None:
    """The training rows of an SFT with the command's seed, (rows,) bool; None for all.

    An older SFT model that it replaces does not count: it may have another seed.

    Raises:
        DataError: `rl.holdout` leaves none, or holds out none.
    """
    return _kept_rows(config, dataset, config.seed)


def _kept_rows(config: Config, dataset: Dataset, seed: int) -> np.ndarray | None:
    if config.rl.holdout == "none":
        return None
    return ~held_out_rows(dataset.train, config.rl.holdout, config.rl.holdout_share, seed)


def rl_split(config: Config) -> SplitName:
    """The split that RL's prompts are of."""
    return "valid" if config.rl.prompts == "valid" else "train"


def rl_rows(config: Config, dataset: Dataset) -> np.ndarray | None:
    """The rows of `rl_split` that RL asks about, (rows,) bool; None for all.

    Raises:
        DataError: `rl.holdout` holds out nothing, or everything.
    """
    if config.rl.prompts == "valid":
        return None
    trained = _kept_rows(config, dataset, _seed_of_sft(config))
    return ~trained if config.rl.prompts == "holdout" and trained is not None else trained


def _seed_of_sft(config: Config) -> int:
    """The seed that drew the SFT model's held-out users, whatever seed RL has; before SFT that of the command."""
    folder = config.folder / "sft"
    return Manifest.load(folder).seed if (folder / MANIFEST).is_file() else config.seed


def check_holdout(sft: Manifest, config: Config) -> None:
    """Refuse to train RL if the SFT model left out other rows than `rl.holdout` says.

    Raises:
        ConfigError: the two differ.
    """
    now, then = holdout_section(config).get("holdout"), sft.config.get("holdout")
    if now != then:
        raise ConfigError(
            f"rl.holdout is {_described(now)}, but the SFT model of this run was trained with {_described(then)}: RL would "
            "take rows for unseen that SFT has learnt, or the other way round. Set rl.holdout and rl.holdout_share as they "
            "were, or train SFT again (minionerec sft --replace)."
        )


def _described(holdout: dict[str, Any] | None) -> str:
    return "none" if holdout is None else f"{holdout['rows']} with rl.holdout_share {holdout['share']:g}"


def check_valid_unseen(model: Manifest, purpose: str) -> None:
    """Refuse to choose or to measure by the valid split with a model that was trained on it.

    Args:
        model: of a training stage.
        purpose: what the valid split is wanted for, for the message.

    Raises:
        ConfigError: RL was trained with `rl.prompts` valid.
    """
    if model.config.get("rl", {}).get("prompts") == "valid":
        raise ConfigError(
            f"{purpose}, but the model of {model.stage} was trained on the valid split (rl.prompts valid): it knows these "
            "rows. Only the test split tells about this model."
        )
