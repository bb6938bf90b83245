"""Beam searches whose kernels are launched all at once: one recording for each size of batch, kept while it is used.

A search is recorded the first time that its bucket comes: rows of the batch and length of the prompts, both rounded up, beams,
trie, what steps add up over, filtered or not, what is mixed in. Later searches of the bucket copy their prompts, filters and
mixtures into the recording's tensors and replay it. A prompt is filled up on the left, a batch with rows whose lists nobody
reads: neither changes a list, but for rounding.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import chain, repeat
from operator import is_, itemgetter
from threading import Lock
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel

from minionerec.tree.capture import CudaRecorder, Outputs, Recorder, Recording
from minionerec.tree.fewer_kernels import twin
from minionerec.tree.guide import Guide
from minionerec.tree.leaf_component import check_leaf_component, leaf_model
from minionerec.tree.length_penalty import LengthPenalty
from minionerec.tree.long_paths import LONG
from minionerec.tree.prompt_cache import Normalise, PromptCache, check_search, plain_head
from minionerec.tree.search import BeamResult, beam_search, check_widths, widen
from minionerec.tree.static_search import not_static, static_search
from minionerec.tree.trie import CatalogTrie
from minionerec.tree.view import View

log = logging.getLogger(__name__)

MOST_GRAPHS = 32  # a graph of 24 layers is some 2,400 kernels, which take a few MB beside the memory that all graphs share
# Bytes: a filter stands as one byte per node of the trie and row of the batch, what is mixed in as eight per SID and row.
_MOST_OF_REQUESTS = 1 << 28
_LENGTH_STEP = 16  # tokens: lengths of prompts are multiples of it


def rounded(number: int, least_step: int = 1) -> int:
    """The size of the bucket of a number: the next multiple of a step, which is `least_step` or at most an eighth of it.

    >>> [rounded(number) for number in (1, 7, 9, 17, 33, 100)]
    [1, 7, 9, 18, 36, 104]
    >>> [rounded(number, 16) for number in (1, 100, 200, 1000)]
    [16, 112, 208, 1024]
    """
    step = max(least_step, 1 << max(0, number.bit_length() - 4))
    return -(-number // step) * step


class Bucket(NamedTuple):
    """What searches must have in common to share a recording.

    Attributes:
        rows: of the batch.
        length: of the prompts (tokens).
        num_beams: of the search.
        trie: `id` of the arrays of its tokens, which its views share and the recording holds.
        normalise_over: what the probabilities of a step add up over.
        filtered: the trie is a view.
        guide: the kind of what is mixed in; None if nothing is.
    """

    rows: int
    length: int
    num_beams: int
    trie: int
    normalise_over: Normalise
    filtered: bool
    guide: type[Guide] | None

    @property
    def written_to(self) -> tuple[Any, ...]:
        """What searches must have in common to share tensors for filters and what is mixed in."""
        return self.rows, self.trie, self.filtered, self.guide


@dataclass(frozen=True)
class _Graph:
    """A recorded search and the tensors that it reads.

    Attributes:
        input_ids: (rows, length).
        visible: (rows, length) bool, False on padding.
        trie: as `_to_write` gives it.
        recording: its outputs are the fields of a `BeamResult`.
    """

    input_ids: torch.Tensor
    visible: torch.Tensor
    trie: CatalogTrie
    recording: Recording

    @classmethod
    def record(cls, model: PreTrainedModel, bucket: Bucket, trie: CatalogTrie, recorder: Recorder) -> "_Graph":
        """Record the search of a bucket on the twin of a model, with prompts of one token.

        Args:
            trie: as `_to_write` gives it for the bucket.
        """
        input_ids = torch.zeros(bucket.rows, bucket.length, dtype=torch.long, device=trie.device)
        visible = torch.zeros_like(input_ids, dtype=torch.bool)
        visible[:, -1] = True
        search = partial(static_search, model, input_ids, visible, trie, bucket.num_beams, bucket.normalise_over)

        def outputs() -> Outputs:
            result = search()
            return tuple(getattr(result, field.name) for field in fields(BeamResult))

        return cls(input_ids, visible, trie, recorder.record(outputs))

    def search(self, input_ids: torch.Tensor, visible: torch.Tensor, trie: CatalogTrie) -> BeamResult:
        """Replay with other prompts; what rows and columns are not filled hold is masked or not read.

        Args:
            trie: as recorded, but with the filters of these prompts and what is mixed in for them.
        """
        rows, length = input_ids.shape
        self.input_ids[:rows, -length:] = input_ids
        self.visible[:rows, :-length] = False
        self.visible[:rows, -length:] = visible
        if self.trie.view is not None:
            for level, legal in enumerate(self.trie.view.masks or ()):
                legal[:rows] = cast(View, trie.view).legal(level, legal.shape[1], rows)
        if isinstance(self.trie.guide, Guide):
            self.trie.guide.fill(cast(Guide, trie.guide))
        self.recording.replay()
        return BeamResult(*(output[:rows].clone() for output in self.recording.outputs))


def _to_write(trie: CatalogTrie, rows: int) -> CatalogTrie:
    """The trie with tensors to which searches of so many rows write their filters, if it has any, and what is mixed in."""
    view = None
    if trie.view is not None:
        view = View.of_legal(tuple(torch.ones(rows, len(nodes), dtype=torch.bool, device=trie.device) for nodes in trie.tokens))
    guide = trie.guide.zeros(rows) if isinstance(trie.guide, Guide) else None
    written = replace(trie, view=view, guide=guide)
    _ = written.fan_outs, written.highest_token  # look at the trie once, and are kept: a recording must not look
    return written


class _Kept(NamedTuple):
    """What is kept of a bucket.

    Attributes:
        tokens: of the trie; while they are held, no other object has their `id`.
        graph: None if the search cannot be recorded.
    """

    tokens: tuple[torch.Tensor, ...]
    graph: _Graph | None


_PARTS, _HOOKS = itemgetter("_modules", "_parameters", "_buffers"), itemgetter("_forward_hooks", "_forward_pre_hooks")


def _parts(modules: Iterable[dict[str, Any]]) -> Iterator[Any]:
    """The children, parameters and buffers of modules, which are given by their attributes."""
    return chain.from_iterable(map(dict.values, chain.from_iterable(map(_PARTS, modules))))


def _hooked(modules: list[dict[str, Any]]) -> bool:
    """Whether modules, which are given by their attributes, have hooks or a forward that is wrapped."""
    return any(chain.from_iterable(map(_HOOKS, modules))) or any(map(dict.__contains__, modules, repeat("forward")))


class _Layout:
    """Where a model's weights lie, and how it attends: recordings are of these, whatever becomes of the model.

    Attributes:
        refusal: why searches of the model cannot be recorded; None if they can.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.refusal = not_static(model)
        self._model, self._attention = model, model.config._attn_implementation
        self._leaf_trie = getattr(model, "leaf_trie", None)
        self._modules = [*model.modules()]  # itself the first
        self._first_called = int(plain_head(model))  # whose forward a search leaves out: it calls what is inside
        self._parts = [*_parts(map(vars, self._modules))]
        self._tensors = [part for part in self._parts if isinstance(part, torch.Tensor)]
        self._places = [*map(torch.Tensor.data_ptr, self._tensors)]

    @cached_property
    def twin(self) -> PreTrainedModel:
        """What is recorded, with the weights that lie there; one for all recordings, since norms are tried to make it."""
        return twin(self._model)

    @property
    def hooked(self) -> bool:
        """Whether a hook, or a wrapping of a module's forward, would have to be called."""
        return _hooked([*map(vars, self._modules[self._first_called :])])

    def holds(self) -> bool:
        """Whether all modules and weights are where they were, attend as they did, and no hook would have to be called.

        It is asked before each search, of hundreds of modules, while a GPU waits: so it has no loop of its own.
        """
        inside = [*map(vars, self._modules)]
        parts = [*_parts(inside)]
        return (
            self._model.config._attn_implementation == self._attention
            and len(parts) == len(self._parts)
            and all(map(is_, parts, self._parts))
            and [*map(torch.Tensor.data_ptr, self._tensors)] == self._places  # a tensor may get other memory (`tensor.data = `)
            and getattr(self._model, "leaf_trie", None) is self._leaf_trie  # made anew if the text vectors change
            and not _hooked(inside[self._first_called :])
        )


class SearchGraphs:
    """Beam searches of one model, recorded and replayed.

    >>> from transformers import Qwen2Config, Qwen2ForCausalLM
    >>> from minionerec.tree.capture import CallRecorder
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = Qwen2ForCausalLM(Qwen2Config(vocab_size=20, num_hidden_layers=1, **sizes)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> graphs = SearchGraphs(model, CallRecorder())  # on a GPU: SearchGraphs(model)
    >>> prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    >>> result, slow = (search(prompts, trie=trie, num_beams=2) for search in (graphs.beam_search, partial(beam_search, model)))
    >>> bool((result.leaves == slow.leaves).all()), torch.allclose(result.scores, slow.scores)
    (True, True)

    Attributes:
        model: whose weights may change where they are, as an optimiser changes them.
        recorded, replayed: how many searches were recorded and replayed so far.
    """

    def __init__(self, model: PreTrainedModel, recorder: Recorder | None = None, most: int = MOST_GRAPHS) -> None:
        """Record nothing yet.

        Args:
            model: in evaluation mode.
            recorder: None for CUDA graphs on the model's device.
            most: recordings that are kept; the one that was not used for the longest time goes.
        """
        self.model, self._most, self._device = model, most, model.device
        self._recorder: Recorder = CudaRecorder(model.device) if recorder is None else recorder
        self._graphs: OrderedDict[Bucket, _Kept] = OrderedDict()
        self._layout: _Layout | None = None
        self._lock = Lock()
        self._reported: set[str] = set()
        self.recorded = self.replayed = 0

    @classmethod
    def on_gpu(cls, model: PreTrainedModel, wanted: bool) -> "SearchGraphs | None":
        """The searches of a model as CUDA graphs; None if it is on no GPU, or if they are not wanted."""
        return cls(model) if wanted and model.device.type == "cuda" else None

    def __len__(self) -> int:
        """How many recordings are kept."""
        return sum(kept.graph is not None for kept in self._graphs.values())

    @torch.no_grad()
    def beam_search(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        trie: CatalogTrie,
        num_beams: int,
        normalise_over: Normalise = "vocabulary",
        widest: int | None = None,
    ) -> BeamResult:
        """What `tree.beam_search` gives for the model, which has arguments and errors; searches after the first are its own.

        What cannot be recorded is searched by `tree.beam_search`; the log has the reason once.
        """
        check_widths(num_beams, widest)
        checked = check_search(self.model, input_ids, attention_mask, trie, normalise_over)
        check_leaf_component(checked.model, trie, normalise_over)
        with self._lock:
            result = self._replayed(input_ids, checked.visible, trie, num_beams, normalise_over)
        over = normalise_over
        if result is None:
            return beam_search(
                self.model, input_ids, attention_mask, trie=trie, num_beams=num_beams, normalise_over=over, widest=widest
            )

        def prompts_of(rows: torch.Tensor) -> PromptCache:
            mask = checked.attention_mask[rows]
            return PromptCache.compute(self.model, input_ids[rows], mask, trie.requests(rows), over)

        return result if widest is None else widen(result, prompts_of, trie, widest)

    def _replayed(
        self, input_ids: torch.Tensor, visible: torch.Tensor, trie: CatalogTrie, num_beams: int, over: Normalise
    ) -> BeamResult | None:
        """The lists of a recorded search; None if it cannot be recorded."""
        if reason := self._refusal(trie, rounded(len(input_ids))):
            self._report(f"A search is not recorded, since {reason}.")
            return None
        length = rounded(input_ids.shape[1], _LENGTH_STEP)
        guide = type(trie.guide) if isinstance(trie.guide, Guide) else None
        bucket = Bucket(rounded(len(input_ids)), length, num_beams, id(trie.tokens), over, trie.view is not None, guide)
        graph = self._graph(bucket, trie, cast(_Layout, self._layout))
        if graph is None:
            return None
        self._recorder.begin()
        result = graph.search(input_ids, visible, trie)
        self._recorder.end()
        self.replayed += 1
        # The ordinary search refuses a model whose second distribution is no numbers; a recording cannot look at it.
        diverged = leaf_model(self.model) is not None and bool(result.scores.isnan().any())
        return None if diverged else result

    def _refusal(self, trie: CatalogTrie, rows: int) -> str | None:
        """Why a search is not recorded, as the end of a sentence; recordings of weights that have moved are dropped."""
        if self._layout is None or not self._layout.holds():
            self._graphs.clear()
            self._layout = _Layout(self.model)
            if self._layout.refusal is None and self._layout.hooked:
                return "a hook of the model, or a wrapping of a module's forward, would be left out"
        if self._layout.refusal is not None:
            return self._layout.refusal
        if self.model.device != self._device:
            return f"the model has moved to {self.model.device}"
        if torch.is_autocast_enabled(self._device.type):
            return "autocast is on, which keeps copies of the weights"
        if trie.depth == 1:
            return "the trie has one level, below which no tree token stands"
        if trie.depth > LONG:
            return f"the trie has {trie.depth} levels, most of whose tree tokens a search can forget"
        if isinstance(trie.guide, LengthPenalty):
            return "a length penalty divides its scores"
        legal, mixed = trie.view is not None, trie.guide is not None
        if (size := rows * (legal * sum(map(len, trie.tokens)) + mixed * 8 * len(trie))) > _MOST_OF_REQUESTS:
            return f"the filters of {rows} prompts, and what is mixed in for them, take {size} bytes"
        return None

    def _graph(self, bucket: Bucket, trie: CatalogTrie, layout: _Layout) -> _Graph | None:
        if bucket not in self._graphs:
            try:
                # The tensors that replays write to must not belong to a caller's inference mode.
                with torch.inference_mode(False), torch.no_grad():
                    graph = _Graph.record(layout.twin, bucket, self._written_to(bucket, trie), self._recorder)
                self._graphs[bucket] = _Kept(trie.tokens, graph)
                self.recorded += 1
            except RuntimeError as error:  # of CUDA, of memory: the ordinary search may still do
                self._graphs[bucket] = _Kept(trie.tokens, None)
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                size = f"{bucket.rows} prompts of {bucket.length} tokens"
                self._report(f"A search of {size} could not be recorded ({reason.rstrip('.')}).")
            while len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        return self._graphs[bucket].graph

    def _written_to(self, bucket: Bucket, trie: CatalogTrie) -> CatalogTrie:
        """What `_to_write` gives for a bucket; recordings share it where they can, since one search follows the other."""
        for other, kept in self._graphs.items():
            if kept.graph is not None and other.written_to == bucket.written_to:
                return kept.graph.trie
        return _to_write(trie, bucket.rows)

    def _report(self, reason: str) -> None:
        """Log a reason once."""
        if reason not in self._reported:
            self._reported.add(reason)
            log.warning("%s It takes more launches, with the same lists.", reason)
