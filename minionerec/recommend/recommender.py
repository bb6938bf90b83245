"""A model that people can ask: histories in, ranked lists of the catalog's items out.

Evaluation, validation during training and your own code ask through this one class, so a model answers everywhere as it was
evaluated.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from minionerec.config import DTYPES, EvalConfig
from minionerec.config.evaluation import Dtype
from minionerec.data.dataset import SPLITS
from minionerec.data.interactions import interaction_counts
from minionerec.distributed import distributed_state, expect_no_gpu
from minionerec.errors import ConfigError, ConstraintError, DataError
from minionerec.prompts.builder import HistoryPrompt, Prompts
from minionerec.recommend.assistant import BaselineAssistant
from minionerec.recommend.explain import Explanation, explain
from minionerec.recommend.filters import FilterFields, Filters, Item, ItemFilter, ItemSets
from minionerec.recommend.lists import ListMaker, Recommendation
from minionerec.recommend.loading import load_parts
from minionerec.recommend.requests import OnUnknown, Request, Search, read_requests, search_widths
from minionerec.tree import BeamResult, CatalogTrie, Normalise, SearchGraphs, Selection, beam_search, left_pad

if TYPE_CHECKING:
    from minionerec.recommend.cache import Mixture

_MOST_VIEWS = 64  # of shared filters; one takes 2 bytes per item
_ONE_HELPER = (
    "A search takes a mixture or an assistant, not both: one weighs probabilities, the other their logarithms. Take the first "
    "away before the second is set: mix(None) or assist(None)."
)


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

    After a lamp and a cup, without these two, three items can be recommended; bowl and chair share a SID:

    >>> [recommendation] = recommender.recommend([["lamp", "cup"]], k=5, exclude_history=True)
    >>> sorted((item.item_id, item.tied) for item in recommendation.items)
    [('bowl', True), ('chair', True), ('vase', False)]
    >>> recommendation.exact, recommendation.reason
    (True, 'The filters leave 3 items: exclude_history hides 2.')

    Attributes:
        model: in evaluation mode.
        prompts: how it is asked.
        trie: the valid SIDs, on the model's device. A leaf of it is a SID.
        config: how lists are made: `num_beams`, `normalise_over`, `exclude_history` and `batch_size`.
        items: the catalog by id, category and name.
        digests: of the artefacts that it was loaded from, by name; empty if it was made in memory.
        mixture: what is mixed into the model's distribution; None for nothing. `mix` sets it.
        assistant: a baseline that helps the model at every step (D3); None for none. `assist` sets it.
        graphs: searches as CUDA graphs; None without a GPU or with `eval.cuda_graphs: off`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Prompts,
        trie: CatalogTrie | None = None,
        config: EvalConfig | None = None,
        max_history: int | None = None,
        popularity: np.ndarray | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Put a model, its prompts and its catalog together.

        Args:
            model: is put into evaluation mode. It is not copied: while it is trained further, it answers as it then is.
            prompts: what the model was trained with.
            trie: of the prompts' SIDs, on the model's device; None to build it.
            config: how lists are made; None for the defaults.
            max_history: `recommend` reads at most so many items of a history, the newest; None for as many as the longest
                history of the prompts' dataset has.
            popularity: (items,) which items are recommended after an empty history, the highest number first; None for the
                dataset's training interactions.
            digests: of the artefacts that all this was read from, by name.

        Raises:
            CatalogError: the tokenizer lacks the catalog's SID tokens.
        """
        self.model, self.prompts = model.eval(), prompts
        self.trie = CatalogTrie.from_codes(prompts.sid_tokens, model.device) if trie is None else trie
        self.config = config or EvalConfig()
        self.items = ItemSets(prompts.dataset.catalog)
        self.digests = dict(digests or {})
        self.mixture: Mixture | None = None
        self.assistant: BaselineAssistant | None = None
        self.graphs = SearchGraphs.on_gpu(self.model, self.config.by_graphs)
        self._max_history, self._popularity = max_history, popularity
        self._lists_of = ListMaker(self.items, self.trie, prompts.index)
        self._views: dict[tuple[str | bytes | None, ...], CatalogTrie] = {}

    @classmethod
    def load(
        cls,
        folder: str | Path,
        stage: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        mixture: bool | None = None,
    ) -> "Recommender":
        """The model of a finished run, with the prompts that it was trained with, as the run was evaluated.

        Args:
            folder: such as `runs/ml-100k`, or a folder that `minionerec export` wrote.
            stage: `sft` or `rl`; None for `rl` if the run has it, else `sft`, or for what was exported.
            device: such as `cpu` or `cuda:1`; None for this process's device.
            dtype: of the weights and of what is computed with them: `float32`, `bfloat16` or `float16`; None for the one in
                which the run is evaluated (`eval.dtype`), and for `float32` of an exported folder.
            mixture: whether what `minionerec mixture` fitted is mixed in; None if the run has it for this model, False for the
                model alone.

        Raises:
            ArtifactError: an artefact is missing or damaged, the model was trained on other data or other SIDs than the run now
                has, or the mixture was fitted to another model.
            ConfigError: there is no such stage, dtype or device, or the model was trained with wordings that this version does
                not have.
        """
        if dtype not in (None, *DTYPES):
            raise ConfigError(f"dtype {dtype}: no such number format of weights; expected one of {', '.join(DTYPES)}.")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device {device}: cannot be used ({reason}). Expected cpu, or a GPU here such as cuda:0."
            ) from None
        expect_no_gpu()
        parts = load_parts(Path(folder), stage, cast(Dtype | None, dtype), mixture)
        target: Any = distributed_state().device if device is None else device  # the stub of `to` takes no device
        trie = None if parts.trie is None else parts.trie.to(target)
        model = parts.model.to(target)
        recommender = cls(model, parts.prompts, trie, parts.lists, parts.max_history, parts.popularity, parts.digests)
        recommender.mix(parts.mixture)
        return recommender

    def mix(self, mixture: "Mixture | None") -> None:
        """Mix what a cache's components know into the model's distribution from now on; None for the model alone.

        Raises:
            ConfigError: `config.normalise_over` is not `catalog`, or there is an assistant.
        """
        if mixture is not None and self.assistant is not None:
            raise ConfigError(_ONE_HELPER)
        if mixture is not None and self.config.normalise_over != "catalog":
            raise ConfigError(
                f"A mixture needs eval.normalise_over catalog; found {self.config.normalise_over}. Over the vocabulary the "
                "model's probabilities of the SIDs do not add up to 1."
            )
        self.mixture = mixture

    def assist(self, assistant: BaselineAssistant | None) -> None:
        """Let a baseline help the model at every step from now on, as D3 does; None for the model alone.

        It knows the histories of one split. `tree/assistant.py` says how the two are weighed.

        Raises:
            ConfigError: there is a mixture.
        """
        if assistant is not None and self.mixture is not None:
            raise ConfigError(_ONE_HELPER)
        self.assistant = assistant

    def mixed(self, trie: CatalogTrie, histories: Sequence[Sequence[int]]) -> CatalogTrie:
        """The trie or view for searches after these histories: with what is mixed in, or as it is if nothing is.

        Args:
            histories: item indices, oldest first.

        Raises:
            DataError: an assistant does not know a history.
        """
        if self.assistant is not None:
            return trie.mixed(self.assistant.of(histories, trie))
        if self.mixture is None:
            return trie
        from minionerec.recommend.mixing import cache_prior  # needs scipy

        return trie.mixed(cache_prior(self.mixture, histories, trie))

    @cached_property
    def max_history(self) -> int:
        """Items of a history that `recommend` reads: as many as the longest history of the dataset has."""
        if self._max_history is not None:
            return self._max_history
        splits = [
            self.prompts.dataset.split(name).lazy().select(pl.col("history").list.len().cast(pl.Int64)) for name in SPLITS
        ]
        return pl.concat(splits).max().collect().item() or 1

    @cached_property
    def popularity(self) -> np.ndarray:
        """(items,) how popular each item is."""
        return interaction_counts(self.prompts.dataset) if self._popularity is None else self._popularity

    @cached_property
    def _by_popularity(self) -> np.ndarray:
        """(items,) the items by popularity, ties in catalog order."""
        return np.argsort(-self.popularity, kind="stable")

    def name_items(self, name: str, items: Iterable[Item]) -> None:
        """Give a set of items a name, such as `in_stock`, for the filter `named`.

        Raises:
            DataError: an item is unknown.
        """
        self.items.name(name, items)
        self._views.clear()

    def recommend(
        self,
        histories: Iterable[Sequence[Item]],
        k: int | None = 10,
        filters: Filters | Sequence[Filters] | None = None,
        *,
        num_beams: int | None = None,
        widest: int | None = None,
        on_unknown: OnUnknown = "error",
        **filter_fields: Unpack[FilterFields],
    ) -> list[Recommendation]:
        """The best items after each history.

        A list does not depend on the other histories, up to rounding.

        Args:
            histories: items, oldest first. Text is an item's id, a whole number is its index, the row of the catalog from 0.
            k: items per list; None for all items of all beams, as in the evaluation.
            filters: for all histories, or one per history. Instead, the fields of one `Filters` can be given by name, for
                example `deny=["50"]`.
            num_beams: beams of the search; None for `config.num_beams`, or for `k` if that is more.
            widest: while a list is not proven exact, search again with twice the beams, up to this many; None searches once.
            on_unknown: whether an item that the catalog lacks is an error or is skipped and named in the result.

        Raises:
            CatalogError: filters leave a history no item.
            ConfigError: `k`, `num_beams` or `widest` do not go together, or a named set of items does not exist.
            ConstraintError: the model's scores are not numbers.
            DataError: an item is unknown or is no item.
        """
        search = self.widths(k, num_beams, widest)
        return self.answer(self.read(histories, filters, on_unknown, **filter_fields), search)

    def widths(self, k: int | None = 10, num_beams: int | None = None, widest: int | None = None) -> Search:
        """How wide a search is, and how long its lists. `recommend` describes arguments and errors."""
        return search_widths(k, num_beams, widest, self.config.num_beams, len(self.trie))

    def read(
        self,
        histories: Iterable[Sequence[Item]],
        filters: Filters | Sequence[Filters] | None = None,
        on_unknown: OnUnknown = "error",
        **filter_fields: Unpack[FilterFields],
    ) -> list[Request]:
        """Check histories and their filters, and turn items into indices. `recommend` describes arguments and errors."""
        if filter_fields and filters is not None:
            raise ConfigError(f"Give filters or {', '.join(filter_fields)}, not both.")
        common = Filters(**filter_fields) if filters is None else filters
        return read_requests(self.items, histories, common, on_unknown, self.max_history, self.config.exclude_history)

    def answer(self, requests: Sequence[Request], search: Search) -> list[Recommendation]:
        """The list of each request.

        Args:
            requests: as `read` returns them.
            search: as `widths` returns it.
        """
        answers: list[Recommendation | None] = [None] * len(requests)
        searched = [number for number, request in enumerate(requests) if request.history]
        for number, request in enumerate(requests):
            if not request.history:
                length = search.k or search.num_beams
                answers[number] = self._lists_of.popular(request, self.popularity, self._by_popularity, length)
        for start in range(0, len(searched), self.config.batch_size):
            numbers = searched[start : start + self.config.batch_size]
            for number, answer in zip(numbers, self._answer([requests[number] for number in numbers], search), strict=True):
                answers[number] = answer
        return [answer for answer in answers if answer is not None]

    def explain(
        self,
        history: Sequence[Item],
        k: int = 10,
        filters: Filters | None = None,
        *,
        num_beams: int | None = None,
        widest: int | None = None,
        on_unknown: OnUnknown = "error",
        **filter_fields: Unpack[FilterFields],
    ) -> Explanation:
        """The list after a history, and the search that made it as a tree. `recommend` describes the arguments.

        Raises:
            DataError: the history is empty, and the errors of `recommend`.
        """
        requests = self.read([history], filters, on_unknown, **filter_fields)
        [recommendation] = self.answer(requests, self.widths(k, num_beams, widest))
        return explain(self, requests[0], recommendation)

    def _answer(self, requests: Sequence[Request], search: Search) -> list[Recommendation]:
        """Search for a batch of histories; those whose lists are not proven exact again and wider, if `search` says so."""
        answers: list[Recommendation] = []
        numbers, beams = list(range(len(requests))), search.num_beams
        while True:
            batch = [requests[number] for number in numbers]
            lists = list(self._lists(batch, beams, search))
            answers = answers or lists
            for number, recommendation in zip(numbers, lists, strict=True):
                answers[number] = recommendation
            numbers = [number for number in numbers if not answers[number].exact]
            if not numbers or search.widest is None or beams >= search.widest:
                return answers
            beams = min(2 * beams, search.widest)

    def _lists(self, requests: Sequence[Request], beams: int, search: Search) -> Iterator[Recommendation]:
        """The lists of one search, which may be a wider one than `search` begins with."""
        k = search.k
        histories = [request.history for request in requests]
        prompts = self.ask(histories)
        view = self.mixed(self.view([request.item_filter for request in requests]), histories)
        tokens, mask = left_pad([prompt.tokens for prompt in prompts], self.prompts.tokenizer.pad_token_id, self.model.device)
        # Of wider searches each has another size: recording it would cost more than it saves.
        graphs = self.graphs if beams == search.num_beams else None
        result = self._beam_search(tokens, mask, view, beams, graphs)
        columns = (result.leaves.tolist(), result.scores.tolist(), result.best_pruned.tolist())
        for request, prompt, leaves, scores, best_pruned in zip(requests, prompts, *columns, strict=True):
            items = self._lists_of.ranked(leaves, scores, request.item_filter)[:k]
            # A full list ends with the lowest score that nothing pruned may exceed; a short one must have pruned nothing.
            full = leaves[-1] >= 0 if k is None else len(items) == k
            lowest = items[-1].score if full else -float("inf")
            yield Recommendation(
                items=tuple(items),
                exact=lowest >= best_pruned,
                beams=beams,
                cut=request.cut + prompt.cut,
                skipped=request.skipped,
                reason=None if full else self.items.reason(request.item_filter),
            )

    def view(self, item_filters: Sequence[ItemFilter]) -> CatalogTrie:
        """The part of the trie that each request of a batch may reach.

        Args:
            item_filters: one per request, as `read` resolves them.
        """
        if not any(item_filters):
            return self.trie
        selections = []
        for item_filter in item_filters:
            listed = item_filter.listed is not None  # what is listed has passed the mask already
            within = None if listed or item_filter.mask is None else self._narrowed(item_filter.mask_key, item_filter.mask)
            selections.append(Selection(item_filter.selection, listed, within))
        return self.trie.select(selections)

    def _narrowed(self, mask_key: tuple[str | bytes | None, ...], mask: np.ndarray) -> CatalogTrie:
        """The part of the trie that a mask leaves. The last ones are kept: making one takes time for the whole catalog."""
        view = self._views.pop(mask_key, None)
        self._views[mask_key] = self.trie.narrow(mask) if view is None else view
        if len(self._views) > _MOST_VIEWS:
            del self._views[next(iter(self._views))]
        return self._views[mask_key]

    def ask(self, histories: Sequence[Sequence[int]]) -> list[HistoryPrompt]:
        """The prompts that ask what comes after some histories."""
        return self.prompts.history_prompts(histories)

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
        prompts = [prompt.tokens for prompt in self.ask(histories)]
        return left_pad(prompts, self.prompts.tokenizer.pad_token_id, self.model.device)

    def search(
        self,
        histories: Sequence[Sequence[int]],
        *,
        num_beams: int,
        normalise_over: Normalise | None = None,
        trie: CatalogTrie | None = None,
    ) -> BeamResult:
        """The most likely SIDs after each history as tensors, best first.

        All histories are one batch of the model, and each is read whole.

        Args:
            histories: item indices, oldest first.
            num_beams: SIDs per list. A list is shorter only if the trie has fewer that are not hidden.
            normalise_over: what a step's probabilities add up over in the scores: all tokens, or the legal next ones; None for
                the recommender's `config`.
            trie: a view of the recommender's trie, such as `recommender.trie.without(hidden)`; None hides nothing.

        Returns:
            the lists; `leaves` are numbers of SIDs in `trie`, and `trie.items(leaf)` gives the items of one.

        Raises:
            DataError: there is no history, or one is empty.
            CatalogError: an item is not in the catalog.
            ConstraintError: the model's scores are not numbers.
        """
        trie = self.mixed(self.trie if trie is None else trie, histories)
        return self._beam_search(*self.encode(histories), trie, num_beams, self.graphs, normalise_over)

    def _beam_search(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        trie: CatalogTrie,
        beams: int,
        graphs: SearchGraphs | None,
        normalise_over: Normalise | None = None,
    ) -> BeamResult:
        over = normalise_over or self.config.normalise_over
        search = partial(beam_search, self.model) if graphs is None else graphs.beam_search
        result = search(tokens, mask, trie=trie, num_beams=beams, normalise_over=over)
        check_numbers(result.scores)
        return result


def check_numbers(scores: torch.Tensor) -> None:
    """Refuse scores that are not numbers.

    Raises:
        ConstraintError: some are not.
    """
    if bool(scores.isnan().any()):  # which sorts as the highest score: the lists would look like any others
        raise ConstraintError(
            "The model's scores are not numbers (NaN), so nothing can be ranked by them: its training diverged, or its "
            "numbers do not fit into float16. Take another checkpoint, or float32 or bfloat16 (eval.dtype)."
        )
