"""Baselines that know an item by codes: made from a run's semantic IDs, or from codes of its item vectors."""

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.baselines.coded.coded_model import CodedModel
from minionerec.baselines.implementation import implementation, options_of
from minionerec.config import CODED_BASELINES, Config
from minionerec.data.dataset import Dataset
from minionerec.recommend.cache.vectors import vectors_digest, vectors_of_run
from minionerec.sid.index import SidIndex


def make_coded(config: Config, beams: int) -> CodedModel:
    """A model with fresh weights from torch's random state, and the codes of the run's items.

    Args:
        beams: of a generative model's search.

    Raises:
        ArtifactError: the run has no semantic IDs, or they belong to other data.
        ConfigError: an option that the model does not take, or a bad value.
        DataError: the items have no vectors.
    """
    model: type[CodedModel] = implementation(config.baseline.model)
    dataset = Dataset.load(config.folder / "data")
    if model.reads == "sids":
        require(config.folder / "sid", ITEM_STAGES["sid"])
        codes = SidIndex.load(config.folder / "sid", dataset).codes
    else:
        trained = dataset.train["target"].append(dataset.train["history"].explode().drop_nulls()).unique().sort()
        codes = model.codes_of(vectors_of_run(config, dataset), trained.to_numpy(), options_of(config.baseline), config.seed)
    return model(codes, config.baseline.max_history, options_of(config.baseline), beams)


def coded_inputs(config: Config) -> dict[str, str]:
    """Digests of what the codes come from, by name; empty for other baselines.

    Raises:
        ArtifactError: the run has no semantic IDs.
        ConfigError, DataError: the items have no vectors.
    """
    if config.baseline.model not in CODED_BASELINES:
        return {}
    if implementation(config.baseline.model).reads == "sids":
        return {"sid": require(config.folder / "sid", ITEM_STAGES["sid"]).digest}
    return {"vectors": vectors_digest(vectors_of_run(config, Dataset.load(config.folder / "data")))}
