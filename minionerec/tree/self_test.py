"""A small tree against plain forwards on the loaded weights: finds what a model's structure does not show.

Random texts with shared beginnings are computed in two ways: as a plain batch without a mask; and on trees, in rows as training
computes them and on a key-value cache as search does. The difference is compared with a yardstick on the same weights: how far
the log-probabilities move if the row of a tree is read as a plain text. A model that ignores masks or positions differs about
as much as that; a model that follows them differs by rounding, whatever the scale of its weights.
"""

from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.architecture import check_model
from minionerec.tree.batch import Branch, pack, tree_logprobs
from minionerec.tree.encoder_decoder import check_t5
from minionerec.tree.exact_scores import score_prefixes
from minionerec.tree.forward import left_pad
from minionerec.tree.trie import CatalogTrie

_LENGTHS = (4, 2)  # tokens of the two prompts: a batch of both is padded
_SIDS = ((0, 2), (0, 3), (1, 4))  # numbers of codes: two SIDs share their first code
_INNER = 2  # first codes, which are the tokens of the tree
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
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    if encoder_decoder:
        check_t5(model)
    else:
        check_model(model)
    training = model.training
    model.eval()
    try:
        prompts, codes = _texts(model)
        expected = (_decoded_plainly if encoder_decoder else _plain)(model, prompts, codes)
        if not encoder_decoder:  # which trains on pairs, without trees
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
    count = sum(_LENGTHS) + max(map(max, _SIDS)) + 1
    tokens = vocabulary // 4 + torch.randperm(vocabulary - vocabulary // 2, generator=torch.Generator().manual_seed(0))
    if len(tokens) < count:
        tokens = torch.arange(count) % vocabulary
    return [part.tolist() for part in tokens[: sum(_LENGTHS)].split(_LENGTHS)], tokens[sum(_LENGTHS) : count].tolist()


def _plain(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> _Expected:
    """Texts in one batch without a mask, filled up on the right, which no earlier token sees.

    A prompt with both first codes behind it is the tree's row. Its beginning also is the text of the first one.
    """
    texts = [text for prompt in prompts for text in ([*prompt, *codes[:_INNER]], [*prompt, codes[1]])]
    width = max(map(len, texts))
    filled = [[*text, *[codes[0]] * (width - len(text))] for text in texts]
    ids = torch.tensor(filled, device=next(model.parameters()).device)
    logprobs = model(input_ids=ids).logits.float().log_softmax(-1)
    right, wrong = [], []
    for number, prompt in enumerate(prompts):
        row, text, last = logprobs[2 * number], logprobs[2 * number + 1], len(prompt) - 1
        for first, second in _SIDS:
            after_code = text[last + 1] if first else row[last + 1]
            read_as_a_text = row[last + 1 + first]
            right += [row[last, codes[first]], after_code[codes[second]]]
            wrong += [row[last, codes[first]], read_as_a_text[codes[second]]]
    steps = torch.stack(right)
    if not bool(steps.isfinite().all()):
        raise ConstraintError(f"The weights of this {type(model).__name__} give NaN or infinity in a plain forward.")
    return _Expected(steps.view(len(prompts), len(_SIDS), -1), _root_mean_square(torch.stack(wrong) - steps))


def _decoded_plainly(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> _Expected:
    """The same of an encoder-decoder: each prompt alone for the encoder, each beginning of a SID alone for the decoder."""
    device, start = next(model.parameters()).device, cast(int, model.config.decoder_start_token_id)

    def after(prompt: list[int], tokens: list[int]) -> torch.Tensor:
        ids, row = (torch.tensor([some], device=device) for some in (prompt, [start, *tokens]))
        return cast(Any, model)(input_ids=ids, decoder_input_ids=row).logits[0, -1].float().log_softmax(-1)

    right, wrong = [], []
    for prompt in prompts:
        first = after(prompt, [])
        read_as_a_text = {0: after(prompt, codes[:1]), 1: after(prompt, codes[:_INNER])}
        for sid in _SIDS:
            right += [first[codes[sid[0]]], after(prompt, [codes[sid[0]]])[codes[sid[1]]]]
            wrong += [first[codes[sid[0]]], read_as_a_text[sid[0]][codes[sid[1]]]]
    return _Expected(
        torch.stack(right).view(len(prompts), len(_SIDS), -1), _root_mean_square(torch.stack(wrong) - torch.stack(right))
    )


def _in_rows(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> torch.Tensor:
    branches = [Branch(prompt, [codes[code] for code in sid]) for prompt in prompts for sid in _SIDS]
    batch = pack(branches, row_tokens=max(_LENGTHS) + _INNER).to(next(model.parameters()).device)
    return tree_logprobs(model, batch).logprobs.view(len(prompts), len(_SIDS), -1)


def _on_a_cache(model: PreTrainedModel, prompts: list[list[int]], codes: list[int]) -> torch.Tensor:
    device = next(model.parameters()).device
    trie = CatalogTrie.from_codes(torch.tensor(codes)[torch.tensor(_SIDS)], device)
    ids, mask = left_pad(prompts, codes[0], device)
    levels = score_prefixes(model, ids, mask, trie=trie, written=True)  # these codes are no catalog of the model's
    nodes = trie.walk(torch.tensor(codes, device=device)[torch.tensor(_SIDS, device=device)])  # (SIDs, levels)
    totals = torch.stack([scores[:, nodes[:, level]] for level, scores in enumerate(levels)], dim=-1)
    return torch.cat([totals[..., :1], totals.diff(dim=-1)], dim=-1)
