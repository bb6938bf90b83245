"""A model that writes titles, asked for items: the trie holds the titles of the catalog, not the SIDs.

BIGRec's second row and D3 on titles. A title is a path of the tokenizer's tokens with the end token behind, items that share a
title share a leaf and are tied, and the search, its certificate and its views are those of SIDs.

Deviations: D3 searches with 10 beams and at most 64 tokens of a title; here `eval.num_beams`, and whole titles.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from minionerec.config import EvalConfig
from minionerec.prompts.builder import HistoryPrompt, Prompts
from minionerec.recommend.recommender import Recommender
from minionerec.tree import NO_TOKEN, CatalogTrie, LengthPenalty


def title_trie(prompts: Prompts) -> CatalogTrie:
    """The titles of a catalog as a trie of token ids, each with the end token; on the CPU."""
    answers = prompts.title_answers
    codes = np.full((len(answers), max(map(len, answers))), NO_TOKEN)
    for row, tokens in zip(codes, answers, strict=True):
        row[: len(tokens)] = tokens
    return CatalogTrie.from_codes(codes)


class TitleRecommender(Recommender):
    """A `Recommender` that asks for a title after the titles of a history. A leaf of its trie is a title."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, config: EvalConfig) -> None:
        """Put a model and the titles of its catalog together, which `prompts.titles.check_whole` has passed."""
        super().__init__(model, prompts, title_trie(prompts).to(model.device), config)
        self.graphs = None  # they would hold the longest title's tokens for every beam
        self._penalty = LengthPenalty.of(self.trie, config.length_penalty)

    def ask(self, histories: Sequence[Sequence[int]]) -> list[HistoryPrompt]:
        """The prompts of histories. All leave the same room for a title, so that none tells how long its answer is.

        It is that of free writing; room for the longest title would cost most histories their beginning. A longer title goes
        beyond `prompts.max_tokens`, but never beyond what the model reads.
        """
        beyond = 0
        if self.prompts.limit is not None and self.prompts.context is not None:
            beyond = self.trie.depth - (self.prompts.context - self.prompts.limit)
        return self.prompts.title_prompts(histories, min(self.trie.depth, max(self.config.title_tokens, beyond)))

    def mixed(self, trie: CatalogTrie, histories: Sequence[Sequence[int]]) -> CatalogTrie:
        """The trie or view for searches after these histories: with an assistant and the length penalty, if there are any."""
        assisted = None if self.assistant is None else self.assistant.of(histories, trie)
        if self._penalty.power:
            return trie.mixed(self._penalty.helped_by(assisted))
        return trie if assisted is None else trie.mixed(assisted)
