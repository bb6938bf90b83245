"""A model that people can ask: histories in, ranked lists of the catalog's semantic IDs out.

Evaluation, validation during training and your own code ask through this one class, so a model answers everywhere as it was
evaluated.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from transformers import PreTrainedModel

from minionerec.artifacts import ITEM_STAGES, MANIFEST, require
from minionerec.config import PromptsConfig
from minionerec.data.dataset import Dataset
from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError, DataError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts
from minionerec.sid.index import SidIndex
from minionerec.tree import BeamResult, CatalogTrie, Normalise, beam_search, left_pad

STAGES = ("sft", "rl")  # the training stages, in their order


class Recommender:
    """A language model, the prompts it was trained with, and the catalog it may recommend from.

    A run's model is loaded with `Recommender.load("runs/ml-100k")`. Here is an untrained one, made in memory:

    >>> import numpy as np
    >>> import polars as pl
    >>> from minionerec import Recommender
    >>> from minionerec.config import DataConfig, ModelConfig
    >>> from minionerec.data.prepare import build_dataset
    >>> from minionerec.model import checkpoint, scratch
    >>> from minionerec.prompts.builder import Prompts, tokenizer_corpus
    >>> from minionerec.sid.index import SidIndex
    >>> names = ["lamp", "cup", "vase", "bowl", "chair"]
    >>> catalog = pl.DataFrame({"item_id": names, "title": names, "text": names})
    >>> clicks = pl.DataFrame({"user": ["ann"] * 5, "item_id": names, "timestamp": range(5)})
    >>> dataset, _ = build_dataset(clicks, catalog, DataConfig())
    >>> index = SidIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1]]), (2, 2), dataset.digest)
    >>> sizes = ModelConfig(hidden_size=16, intermediate_size=16, layers=1, heads=2, vocabulary=300)
    >>> model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, seed=0)
    >>> _ = checkpoint.add_sid_tokens(model, tokenizer, index, seed=0)
    >>> recommender = Recommender(model, Prompts(dataset, index, tokenizer))

    After a history of items 0 and 1, hiding these two, there are two SIDs to recommend; items 3 and 4 share one:

    >>> result = recommender.recommend([[0, 1]], num_beams=5, hidden=[[0, 1]])
    >>> sorted(recommender.trie.items(leaf) for leaf in result.leaves[0].tolist())
    [[], [], [], [2], [3, 4]]

    Attributes:
        model: in evaluation mode.
        prompts: how it is asked.
        trie: the valid SIDs, on the model's device. A leaf of it is a SID.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, trie: CatalogTrie | None = None) -> None:
        """Put a model, its prompts and its catalog together.

        Args:
            model: is put into evaluation mode. It is not copied: while it is trained further, it answers as it then is.
            prompts: what the model was trained with.
            trie: of the prompts' SIDs, on the model's device; None to build it.

        Raises:
            CatalogError: the tokenizer lacks the catalog's SID tokens.
        """
        self.model, self.prompts = model.eval(), prompts
        self.trie = CatalogTrie.from_codes(prompts.sid_tokens, model.device) if trie is None else trie

    @classmethod
    def load(cls, run_folder: str | Path, stage: str | None = None) -> "Recommender":
        """The model of a finished run, on this process's device, with the prompts that it was trained with.

        Args:
            run_folder: such as `runs/ml-100k`.
            stage: `sft` or `rl`; None for `rl` if the run has it, else `sft`.

        Raises:
            ArtifactError: an artefact is missing or damaged, or the model was trained on other data or other SIDs than the run
                now has.
            ConfigError: there is no such stage, or the model was trained with wordings that this version does not have.
        """
        run_folder = Path(run_folder)
        if stage is None:
            stage = "rl" if (run_folder / "rl" / MANIFEST).is_file() else "sft"
        if stage not in STAGES:
            raise ConfigError(f"stage {stage}: no such training stage; expected one of {', '.join(STAGES)}.")
        inputs = {name: require(run_folder / name, command).digest for name, command in ITEM_STAGES.items()}
        manifest = require(run_folder / stage, f"minionerec {stage}", made_from=inputs)
        trained = manifest.config["prompts"]
        # A field that another version did not record keeps its default here, and the check names it.
        config = PromptsConfig(**{field.name: trained[field.name] for field in fields(PromptsConfig) if field.name in trained})
        check_prompts(manifest.config, config, str(run_folder / stage))
        dataset = Dataset.load(run_folder / "data")
        index = SidIndex.load(run_folder / "sid", dataset)
        model, tokenizer = checkpoint.load(str(run_folder / stage / "model"))
        prompts = Prompts(dataset, index, tokenizer, config, checkpoint.context_of(model))
        return cls(model.to(distributed_state().device), prompts)

    def encode(self, histories: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts of some histories as the model reads them.

        Args:
            histories: item indices, oldest first.

        Returns:
            token ids and attention mask, (histories, longest prompt) each, left-padded, on the model's device.

        Raises:
            DataError: there is no history, or one is empty.
            CatalogError: an item is not in the catalog.
        """
        if not len(histories):
            raise DataError("There is no history to recommend for; expected at least one list of item indices.")
        prompts = [self.prompts.ask(history) for history in histories]
        return left_pad(prompts, self.prompts.tokenizer.pad_token_id, self.model.device)

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        *,
        num_beams: int,
        normalise_over: Normalise = "vocabulary",
        hidden: Sequence[Sequence[int]] | None = None,
    ) -> BeamResult:
        """The most likely SIDs after each history, best first.

        All histories are one batch of the model; many are better asked in parts.

        Args:
            histories: item indices, oldest first.
            num_beams: SIDs per list. A list is shorter only if the catalog has fewer that are not hidden.
            normalise_over: what a step's probabilities add up over in the scores: all tokens, or the legal next ones.
            hidden: per history, items that must not be recommended. A SID that several items share is hidden only if all of
                them are. None hides nothing.

        Returns:
            the lists; `leaves` are numbers of SIDs in `trie`, and `trie.items(leaf)` gives the items of one.

        Raises:
            DataError: there is no history, or one is empty.
            CatalogError: an item is not in the catalog, or a filter hides all items.
        """
        input_ids, mask = self.encode(histories)
        trie = self.trie if hidden is None else self.trie.without(hidden)
        return beam_search(self.model, input_ids, mask, trie=trie, num_beams=num_beams, normalise_over=normalise_over)
