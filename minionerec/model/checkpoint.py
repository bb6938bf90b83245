"""Load a causal LM with its tokenizer, give it SID tokens, save it."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from minionerec.errors import CatalogError, ConfigError, ConstraintError
from minionerec.model import loading, pretrained
from minionerec.model.sid_rows import SidInit, new_rows
from minionerec.sid.index import SidIndex
from minionerec.tree.architecture import check_model, longest_text
from minionerec.tree.self_test import check_exact


def load(path: str | Path, dtype: str = "float32", weights: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder, a GGUF file or, by name, from the hub.

    Only safetensors weights are read and no code of the checkpoint is run. Attention is sdpa, or eager for models without it.
    The structure of the model is checked, and its weights on a small tree: a model whose layers do not follow tree masks would
    train and search silently wrong.

    Args:
        path: a folder, a GGUF file, the name of a published model (`pretrained.PUBLISHED`) or a hub name.
        dtype: of the weights.
        weights: False reads only the configuration and the tokenizer and checks only the structure: all parameters are on the
            meta device, none in memory.

    Raises:
        ConfigError: the files are missing, unreadable or do not belong together (`loading.read`, `pretrained.resolve`), the
            model cannot be computed on trees, the tokenizer has no end token, or it has tokens for which the model has no rows.
    """
    model, tokenizer = loading.read(pretrained.resolve(path), dtype, weights)
    check_tokenizer(path, tokenizer, model)
    try:
        check_exact(model) if weights else check_model(model)
    except ConstraintError as error:
        raise ConfigError(f"{path}: {error}") from error
    return model, tokenizer


def check_tokenizer(path: str | Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Let a tokenizer without padding token pad with its end token; padding is masked and never a label.

    Raises:
        ConfigError: the tokenizer has no end token, or tokens for which the model has no rows.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{path}: the tokenizer has no end-of-sequence token (eos_token); titles could never end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = vocabulary_rows(model)
    highest = max(number for number in tokenizer.get_vocab().values() if number != tokenizer.pad_token_id)  # never read
    if highest >= rows:
        raise ConfigError(
            f"{path}: the tokenizer has a token with id {highest}, but the model's vocabulary has only {rows} rows (ids 0 to "
            f"{rows - 1}). Model and tokenizer do not belong together: take the tokenizer files of this model."
        )


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Rows of the input embedding: token ids below this number can be read."""
    return cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read, prompt and completion together; None if unlimited."""
    return longest_text(model)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into a folder, so that `load` finds both."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_sid_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: SidIndex,
    seed: int,
    init: SidInit = "mean",
    titles: Sequence[str] = (),
) -> int:
    """Add the SID tokens that the tokenizer lacks as ordinary tokens and give them rows of their own in the model.

    Rows of tokens that are already there stay: a checkpoint trained with SIDs can be trained further. `model/sid_rows.py` gives
    the initial values of new rows: transformers' default would make them equal to within 1e-6, and SIDs could not be told
    apart. Tied heads stay tied; an untied head gets rows of its own in the same way.

    Args:
        seed: of the new rows.
        init: how they are initialised.
        titles: the items' titles, for `text`.

    Returns:
        How many tokens were new.

    Raises:
        ConfigError: `init` is `text` and no item has a title.
    """
    old = vocabulary_rows(model)
    title_ids = tokenizer(list(titles), add_special_tokens=False)["input_ids"] if init == "text" and titles else []
    positions = add_tokens(model, tokenizer, index)
    new_tokens = [index.token_strings()[position] for position in positions]
    generator = torch.Generator().manual_seed(seed)
    rows_of = new_rows(
        init, index, title_ids, getattr(model.config.get_text_config(decoder=True), "initializer_range", 0.02), generator
    )
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(weight): weight for weight in (cast(torch.Tensor, layer.weight) for layer in layers)}  # one if tied
    ids = tokenizer.get_vocab()
    rows = [ids[text] for text in new_tokens]
    with torch.no_grad():
        for weight in embeddings.values():
            # Some models have more rows than tokens, for a round number; those were never trained.
            old_rows = weight[: min(old, len(tokenizer) - len(new_tokens))].float()
            weight[rows] = rows_of(old_rows, positions).to(weight.dtype)
    return len(new_tokens)


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: SidIndex) -> list[int]:
    """Add the SID tokens that the tokenizer lacks, and rows for them whose values are not set; see `add_sid_tokens`.

    Returns:
        the positions of the new tokens in `index.token_strings()`.
    """
    vocabulary = tokenizer.get_vocab()
    positions = [position for position, text in enumerate(index.token_strings()) if text not in vocabulary]
    new_tokens = [index.token_strings()[position] for position in positions]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in new_tokens])
    if len(tokenizer) > vocabulary_rows(model):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return positions


def sid_token_ids(tokenizer: PreTrainedTokenizerBase, index: SidIndex) -> torch.Tensor:
    """The SIDs of all items as token ids: (items, levels) int64, -1 where a shorter SID has no code.

    Raises:
        CatalogError: the tokenizer lacks a SID token, or splits one.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in index.token_strings() if text not in vocabulary]
    if missing:
        raise CatalogError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: lacks {len(missing)} of the catalog's "
            f"{len(index.token_strings())} SID tokens, the first is {missing[0]}. This checkpoint was not trained with this "
            "SID index: run the sft stage with it, or use the checkpoint's own index."
        )
    split = [text for text in index.token_strings() if tokenizer.encode(text, add_special_tokens=False) != [vocabulary[text]]]
    if split:
        raise CatalogError(f"The tokenizer splits the SID token {split[0]} into several tokens; add it as a token first.")
    starts = torch.tensor([0, *index.codebook_sizes[:-1]]).cumsum(0)
    flat = torch.tensor([vocabulary[text] for text in index.token_strings()])
    codes = torch.from_numpy(index.codes).long()
    return flat[codes.clamp(min=0) + starts].masked_fill(codes < 0, -1)
