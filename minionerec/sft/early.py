"""What SFT refuses before anything is loaded, even before the data is prepared. Nothing here imports torch."""

from collections.abc import Collection

from minionerec.config import Config
from minionerec.errors import ConfigError
from minionerec.training.early import check_cutoff, check_mixed_in, check_trackers, check_vectors
from minionerec.training.machine import check_model_memory


def check_early(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse settings that cannot work on this machine.

    Args:
        pending: stages that run before SFT and may change what they have left so far.

    Raises:
        ArtifactError: the run's semantic IDs are damaged, and the model needs their vectors; or its validations need a baseline
            that cannot be asked.
        ConfigError: a tracker is missing, lists are shorter than the metric that chooses the best model, the encoder of
            item texts is missing, the model would be trained through a baseline that knows the answers, or it does not fit
            into the memory.
    """
    check_trackers("sft.report_to", config.sft.report_to)
    if config.sft.best_metric != "loss":
        check_cutoff("sft.best_metric", config.sft.best_metric, config)
    if config.model.item_texts:
        check_vectors(config, pending)
    check_trained_mixture(config)
    if config.mixes_in("sft"):
        check_mixed_in(config, pending)  # an empty valid split is refused for any training, once the data are there
    check_model_memory(config)


def check_trained_mixture(config: Config) -> None:
    """Refuse to train the model through a baseline that knows the answers.

    Raises:
        ConfigError: `sft.mixture.weights` mixes components into the loss, and one of them is `sequential`.
    """
    if config.sft.mixture.weights != "none" and (baseline := config.mixture.sequential) is not None:
        raise ConfigError(
            f"sft.mixture.weights is {config.sft.mixture.weights}, but mixture.components names sequential: {baseline} was "
            "trained on every training row, so it would know the answers that the model is to learn beside it; no row can be "
            "left out of it, as it is left out of counts. Leave sequential (and mixture.sequential) out of the training and "
            "mix it in afterwards (minionerec mixture), or set sft.mixture.weights none."
        )
