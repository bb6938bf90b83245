"""Validation while a model is trained: the metrics of `eval` on part of the valid split, decoded as `eval` decodes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from minionerec.config import Config
from minionerec.distributed import distributed_state
from minionerec.errors import DataError
from minionerec.eval.metrics import ranks
from minionerec.eval.predict import Decoder, evenly_spaced
from minionerec.prompts.builder import Prompts
from minionerec.statistics.ranking import per_user

SHOWN = ("HR@1", "HR@10", "HR@50", "NDCG@10")


def validator(
    model: PreTrainedModel, prompts: Prompts, config: Config, examples: int | None, metric: str
) -> Callable[[], dict[str, float]]:
    """A function that measures the model as it is when it is called, on `examples` of the valid split (None: on all).

    Every device calls it; they share the batches, which do not depend on their number, and all get the same figures: `SHOWN`
    and `metric`, on SIDs. Lists are as long as `eval.num_beams`, so a metric with a larger cut-off sees no more. The
    model must be in evaluation mode.

    Raises:
        DataError: the valid split is empty.
    """
    if not len(prompts.dataset.valid):
        raise DataError(
            f"{Path(config.folder) / 'data'}: the valid split is empty; there is nothing to choose the best model by. Set "
            "sft.best_metric loss and rl.evaluations 0."
        )
    decoder = Decoder(model, prompts, replace(config.eval, split="valid"))
    rows = sorted(evenly_spaced(len(decoder), examples or len(decoder)))
    size = config.eval.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def measure() -> dict[str, float]:
        state = distributed_state()
        mine = range(state.process_index, len(batches), state.num_processes)
        found = [(number, ranks(list(decoder.predict(batches[number])))) for number in mine]
        together = np.concatenate([part for _, part in sorted(gather_object(found), key=lambda pair: pair[0])])
        values = per_user(together)
        return {name: float(values[name].mean()) for name in dict.fromkeys((*SHOWN, metric))}

    return measure
