"""A small tree against plain forwards on the loaded weights: finds what a model's structure does not show.

Random texts with shared beginnings are computed in two ways: as a plain batch without a mask; and on trees, in rows as training
computes them and on a key-value cache as search does. The difference is compared with a yardstick on the same weights: how far
the log-probabilities move if the row of a tree is read as a plain text. A model that ignores masks or positions differs about
as much as that; a model that follows them differs by rounding, whatever the scale of its weights.
"""

from typing import NamedTuple, cast

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.architecture import check_model
from minionerec.tree.batch import Branch, pack, tree_logprobs
from minionerec.tree.exact_scores import score_prefixes
from minionerec.tree.forward import left_pad
from minionerec.tree.trie import CatalogTrie

_LENGTHS = (5, 3)  # tokens of the two prompts: a batch of both is padded
_SIDS = ((0, 2, 5), (0, 3, 6), (1, 4, 7))  # numbers of codes: two SIDs share their first code
_PREFIXES = ((0,), (1,), (0, 2), (0, 3), (1, 4))  # that some SID continues
# Of the yardstick: rounding in a deep model stays well below, and a layer that ignores the mask lies well above.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.25}
# Of the log-probabilities themselves: of weights by which texts do not differ only rounding is left to compare.
_LEAST = 1e-5
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class _Expected(NamedTuple):
    """What plain forwards give.

    Attributes:
        steps: (prompts, SIDs, levels) log-probability of each code, in nats.
        yardstick: root mean square of what changes if a tree's row is read as a plain text.
    """

    steps: torch.Tensor
    yardstick: float


@torch.no_grad()
def check_exact(model: PreTrainedModel) -> None:
    """Run a model on a small tree; its mode and the state of torch's random numbers stay as they are.

    Raises:
        ConstraintError: the structure shows that trees are not exact, a tree gives other numbers than plain forwards, or it
            cannot be computed.
    """
    check_model(model)
    training = model.training
    model.eval()
    try:
        prompts, codes = _texts(model)
        expected = _plain(model, prompts, codes)
        _compare(model, "in rows, as training computes it,", _in_rows(model, prompts, codes), expected)
        _compare(model, "on a cache, as search computes it,", _on_a_cache(model, prompts, codes), expected)
    except _FAILURES as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConstraintError(
            f"A {type(model).__name__} cannot be computed on trees: a small one ends in {type(error).__name__} ({reason}). "
            "docs/models.md lists models that can."
        ) from error
    finally:
        model.train(training)


def _compare(model: PreTrainedModel, name: str, steps: torch.Tensor, expected: _Expected) -> None:
    dtype = next(parameter.dtype for parameter in model.parameters())
    rounding = _TOLERANCE.get(dtype, 0.25) * expected.yardstick + _LEAST * _root_mean_square(expected.steps)
    difference = _root_mean_square(steps - expected.steps)
    if not difference <= rounding:  # NaN is not
        raise ConstraintError(
            f"A {type(model).__name__} gives other numbers on a tree than in plain forwards: a small tree {name} is off by "
            f"{difference:.2g} nats per token, where rounding explains {rounding:.2g}. Some layer does not follow masks or "
            "positions, so training and search would be silently wrong. docs/models.md lists models that are equal."
        )


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _texts(model: PreTrainedModel) -> tuple[list[list[int]], list[int]]:
    """Random prompts and codes, from the middle of the vocabulary: tokens for images and the like stand at its ends."""
    vocabulary = cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = vocabulary // 4 + torch.randperm(vocabulary - vocabulary // 2, generator=generator)
    tokens = tokens.repeat(-(-sum(_LENGTHS) // len(tokens)) + 1)  # a small vocabulary serves again
    prompts = [part.tolist() for part in tokens[: sum(_LENGTHS)].split(_LENGTHS)]
    return prompts, tokens.unique()[-8:].tolist() if len(tokens.unique()) >= 8 else list(range(8))


def _plain(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> _Expected:
    """All texts in one batch without a mask, filled up on the right, which no earlier token sees."""
    prompts_of_texts = [prompt for prompt in prompts for _ in _SIDS]
    texts = [[*prompt, *(codes[code] for code in sid)] for prompt in prompts for sid in _SIDS]
    rows = [[*prompt, *(codes[prefix[-1]] for prefix in _PREFIXES)] for prompt in prompts]
    width = max(map(len, [*texts, *rows]))
    filled = [[*text, *[codes[0]] * (width - len(text))] for text in [*texts, *rows]]
    device = next(model.parameters()).device
    logprobs = model(input_ids=torch.tensor(filled, device=device)).logits.float().log_softmax(-1)
    right, wrong = [], []
    for number, (prompt, sid) in enumerate(zip(prompts_of_texts, _SIDS * len(prompts), strict=True)):
        last = len(prompt) - 1
        for level, code in enumerate(sid):
            right.append(logprobs[number, last + level, codes[code]])
            place = last if not level else last + 1 + _PREFIXES.index(sid[:level])
            wrong.append(logprobs[len(texts) + number // len(_SIDS), place, codes[code]])
    steps = torch.stack(right)
    if not bool(steps.isfinite().all()):
        raise ConstraintError(f"The weights of this {type(model).__name__} give NaN or infinity in a plain forward.")
    return _Expected(steps.view(len(prompts), len(_SIDS), -1), _root_mean_square(torch.stack(wrong) - steps))


def _in_rows(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> torch.Tensor:
    branches = [Branch(prompt, [codes[code] for code in sid]) for prompt in prompts for sid in _SIDS]
    batch = pack(branches, row_tokens=max(_LENGTHS) + len(_PREFIXES)).to(next(model.parameters()).device)
    return tree_logprobs(model, batch).logprobs.view(len(prompts), len(_SIDS), -1)


def _on_a_cache(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> torch.Tensor:
    device = next(model.parameters()).device
    trie = CatalogTrie.from_codes(torch.tensor(codes)[torch.tensor(_SIDS)], device)
    ids, mask = left_pad(prompts, codes[0], device)
    levels = score_prefixes(model, ids, mask, trie=trie)
    nodes = trie.walk(torch.tensor(codes, device=device)[torch.tensor(_SIDS, device=device)])  # (SIDs, levels)
    totals = torch.stack([scores[:, nodes[:, level]] for level, scores in enumerate(levels)], dim=-1)
    return torch.cat([totals[..., :1], totals.diff(dim=-1)], dim=-1)
