"""What SFT refuses before anything is loaded, even before the data is prepared. Nothing here imports torch."""

from minionerec.config import Config
from minionerec.sid.encoder import check_encoder
from minionerec.training.early import check_cutoff, check_mixture, check_trackers
from minionerec.training.machine import check_model_memory


def check_early(config: Config) -> None:
    """Refuse settings that cannot work on this machine.

    Raises:
        ConfigError: a tracker is missing, lists are shorter than the metric that chooses the best model, the encoder of
            item texts is missing, or the model does not fit into the memory.
    """
    check_trackers("sft.report_to", config.sft.report_to)
    if config.sft.best_metric != "loss":
        check_cutoff("sft.best_metric", config.sft.best_metric, config)
    if config.model.text_input or config.model.text_output:
        check_encoder(config.sid)
    if config.sft.mixture.weights != "none" or (config.mixture.validation and config.sft.best_metric != "loss"):
        check_mixture(config, ("data",))  # an empty valid split is refused for any training, once the data are there
    check_model_memory(config)
