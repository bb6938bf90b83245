"""What SFT refuses before anything is loaded, even before the data is prepared. Nothing here imports torch."""

from collections.abc import Collection

from minionerec.config import Config
from minionerec.training.early import check_cutoff, check_mixture, check_trackers, check_vectors
from minionerec.training.machine import check_model_memory


def check_early(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse settings that cannot work on this machine.

    Args:
        pending: stages that run before SFT and may change what they have left so far.

    Raises:
        ArtifactError: the run's semantic IDs are damaged, and the model needs their vectors.
        ConfigError: a tracker is missing, lists are shorter than the metric that chooses the best model, the encoder of
            item texts is missing, or the model does not fit into the memory.
    """
    check_trackers("sft.report_to", config.sft.report_to)
    if config.sft.best_metric != "loss":
        check_cutoff("sft.best_metric", config.sft.best_metric, config)
    if config.model.item_texts:
        check_vectors(config, pending)
    if config.mixes_in("sft"):
        check_mixture(config, (*pending, "data"))  # an empty valid split is refused for any training, once the data are there
    check_model_memory(config)
