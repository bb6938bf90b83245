"""The neural baselines by name, made from the configuration."""

import inspect
from collections.abc import Callable

from minionerec.baselines.models.bert4rec import BERT4Rec
from minionerec.baselines.models.caser import Caser
from minionerec.baselines.models.fearec import FEARec, FEARecPublished
from minionerec.baselines.models.gru4rec import GRU4Rec
from minionerec.baselines.models.hstu import HSTU
from minionerec.baselines.models.lightsans import LightSANs
from minionerec.baselines.models.pswrec import PSWRecV5, PSWRecV12, PSWRecV13, PSWRecV13WithoutRotation
from minionerec.baselines.models.recommender import Recommender
from minionerec.baselines.models.released import ReleasedCaser, ReleasedGRU4Rec, ReleasedSASRec
from minionerec.baselines.models.sasrec import SASRec
from minionerec.baselines.models.trm4rec import TRM4Rec
from minionerec.baselines.models.wearec import WEARec
from minionerec.config import BASELINE_OPTIONS, BaselineConfig
from minionerec.errors import ConfigError

MODELS: dict[str, Callable[..., Recommender]] = {
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "lightsans": LightSANs,
    "fearec": FEARec,
    "fearec-published": FEARecPublished,
    "trm4rec": TRM4Rec,
    "wearec": WEARec,
    "pswrec-v5": PSWRecV5,
    "pswrec-v12": PSWRecV12,
    "pswrec-v13": PSWRecV13,
    "pswrec-v13-without-rotation": PSWRecV13WithoutRotation,
    "gru4rec": GRU4Rec,
    "caser": Caser,
    "hstu": HSTU,
    "gru4rec-released": ReleasedGRU4Rec,
    "caser-released": ReleasedCaser,
    "sasrec-released": ReleasedSASRec,
}


def chosen(config: BaselineConfig, model: Callable[..., object]) -> dict[str, object]:
    """The options that the configuration sets for a recommender: a class, or a function that makes one.

    Raises:
        ConfigError: one that it does not take.
    """
    made = inspect.getmro(model) if inspect.isclass(model) else (model,)
    signatures = [inspect.signature(one.__init__ if inspect.isclass(one) else one) for one in made]
    keyword = inspect.Parameter.KEYWORD_ONLY
    known = {name for signature in signatures for name, one in signature.parameters.items() if one.kind is keyword}
    given = {name: getattr(config, name) for name in BASELINE_OPTIONS if getattr(config, name) is not None}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"baseline.{name} is set, but {config.model} does not take it. "
                f"It takes {', '.join(sorted(known)) or 'no option'}."
            )
    return given


def make(config: BaselineConfig, items: int) -> Recommender:
    """A model with fresh weights from torch's random state.

    Raises:
        ConfigError: an option that the model does not take, or a bad value.
    """
    model = MODELS[config.model]
    return model(items, config.max_history, **chosen(config, model))


def count_parameters(model: Recommender) -> int:
    """Parameters, trainable or not; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
