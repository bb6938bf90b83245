"""Lists of a run's finished baselines that write SIDs: asked anew, as `eval` says, in the way that language models are asked.

The tree engine searches, so every list has its certificate, and a history that is left out is a view of the trie. What the
stage `baseline` stored (`baselines/<model>/test.parquet`) is by its own, wider search and plays no part here.

`liger` ranks by cosines what a search finds, and all cold items. Its list is proven if the search is: then the candidates are
the most likely SIDs and the cold items, as LIGER has it, and each of them is scored.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from minionerec.artifacts import Manifest, require
from minionerec.baselines.coded import coded_inputs, make_coded
from minionerec.baselines.coded.coded_model import GenerativeModel
from minionerec.config import Config, EvalConfig
from minionerec.data.dataset import Dataset
from minionerec.data.history_rows import SPLITS_SIDE, HistoryRows
from minionerec.data.vectors import training_command
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ArtifactError
from minionerec.eval import search_error
from minionerec.eval.decode import Decoder
from minionerec.eval.predictions import Prediction, as_prediction
from minionerec.model.sequential import weights
from minionerec.model.sequential.batches import HistoryBatch, make_batch
from minionerec.recommend.cache.sequential import settings_of
from minionerec.recommend.filters import ItemFilter, ItemSets
from minionerec.recommend.lists import ListMaker, Recommendation
from minionerec.recommend.recommender import check_numbers
from minionerec.sid.index import SidIndex
from minionerec.training.ranking import ranked, target_ranks, without_history
from minionerec.training.ranking_data import from_dataset
from minionerec.tree import BeamResult

log = logging.getLogger(__name__)


class CodedDecoder(Decoder):
    """Asks a baseline that writes SIDs about the rows of a split.

    Attributes:
        model: in evaluation mode.
    """

    def __init__(self, model: GenerativeModel, config: EvalConfig, dataset: Dataset, index: SidIndex) -> None:
        """Read the split.

        Args:
            model: of the index's codes; it is put into evaluation mode.
        """
        if model.reranks:  # its order is not the search's, so there is none to replay
            config = replace(config, oracle_examples=0)
        super().__init__(config, dataset, index)
        self.model = model.eval()
        self._rows: HistoryRows = from_dataset(dataset, model.max_history).rows[config.split]
        self._lists_of = ListMaker(ItemSets(dataset.catalog), model.trie, index)

    @classmethod
    def load(cls, config: Config, name: str, dataset: Dataset, index: SidIndex) -> "CodedDecoder":
        """A finished baseline of a run, which the caller has required, in `eval.dtype` on this process's device.

        Raises:
            ArtifactError: it was trained with settings that this version does not take.
            ConfigError, DataError: it reads item vectors, and they cannot be had.
        """
        trained = _as_trained(config, _stored(config, name))
        model: Any = make_coded(trained, config.eval.num_beams)
        weights.load(model, config.folder / "baselines" / name / "model.safetensors")
        if model.reranks and config.eval.oracle_examples and is_main_process():
            log.info("%s orders lists by cosines, so eval.oracle_examples has no search of it to replay.", name)
        model = model.to(getattr(torch, config.eval.dtype)).to(distributed_state().device)
        return cls(model, config.eval, dataset, index)

    def _predictions(self, rows: Sequence[int], examples: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
        part = self._rows.take(np.array(rows))
        batch, hidden = self._batch(part), [frozenset[int]()] * len(examples)
        trie = self.model.trie
        beams = min(self.config.num_beams, len(trie))
        if self.config.exclude_history:
            hidden = [frozenset(example["history"]) for example in examples]
            trie = trie.without([sorted(items) for items in hidden])
        found = self.model.search(batch, beams, trie, self.config.normalise_over)
        check_numbers(found.scores)
        if self.model.reranks:
            yield from self._reranked(part, batch, found, examples)
            return
        lists = (found.leaves.tolist(), found.scores.tolist(), found.exact.tolist())
        for example, own, leaves, scores, exact in zip(examples, hidden, *lists, strict=True):
            items = self._lists_of.ranked(leaves, scores, ItemFilter(hidden=own))
            yield self._prediction(example, Recommendation(tuple(items), exact, beams))

    @torch.no_grad()
    def _reranked(
        self, part: HistoryRows, batch: HistoryBatch, found: BeamResult, examples: Sequence[dict[str, Any]]
    ) -> Iterator[Prediction]:
        """Predictions of a model that ranks anew what a search found."""
        scores = self.model.reranked(batch, self.model.item_scores(found))
        check_numbers(scores)  # those of a cold item play no part in the search
        if self.config.exclude_history:  # a SID stays if it has other items, and cold items come from no search
            scores = without_history(scores, part)
        best, ties = target_ranks(scores, batch.targets, expects_ties=True)
        lists = ranked(scores, self.config.num_beams)
        for row, (example, exact) in enumerate(zip(examples, found.exact.tolist(), strict=True)):
            named = example if self._several else {**example, "position": None}
            yield as_prediction(named, lists[row] - 1, self.index, self._ids, exact, (best[row], int(ties[row])))

    def _traces(
        self, rows: Sequence[int], examples: Sequence[dict[str, Any]], widths: Sequence[int]
    ) -> Sequence[search_error.Trace]:
        batch = self._batch(self._rows.take(np.array(rows)))
        scores = self.model.prefix_scores(batch, self.config.normalise_over)
        return search_error.traced(self.model.trie, scores, scores, rows, [one["target"] for one in examples], widths)

    def _batch(self, part: HistoryRows) -> HistoryBatch:
        device = self.model.get_buffer("tokens").device
        return make_batch(part, layout="padded", side=SPLITS_SIDE, max_history=self.model.max_history).to(device)


def inputs_of(config: Config, name: str) -> Mapping[str, str]:
    """Digests of what the codes of a finished baseline come from, as the run has it now, by name.

    Raises:
        ArtifactError: the run has no semantic IDs, or no such baseline; or this was trained with other item vectors than the
            run has now, or with settings that this version does not take.
        ConfigError, DataError: it reads item vectors, and they cannot be had.
    """
    stored = _stored(config, name)
    inputs = coded_inputs(_as_trained(config, stored))
    if "vectors" in inputs and inputs["vectors"] != stored.inputs.get("vectors"):
        raise ArtifactError(
            f"{config.folder / stored.stage}: was trained with other item vectors than the run has now. Name those that it was "
            f"trained with (--sid.vectors FILE.npy), or train it again: {training_command(name)} --replace"
        )
    return inputs


def _stored(config: Config, name: str) -> Manifest:
    """The manifest of a finished baseline."""
    return require(config.folder / "baselines" / name, training_command(name))


def _as_trained(config: Config, stored: Manifest) -> Config:
    """The configuration with the settings that a finished baseline was trained with."""
    return replace(config, baseline=settings_of(config.folder / stored.stage, stored))
