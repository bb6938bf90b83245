"""Load a causal LM with its tokenizer, give it SID tokens, save it; find the checkpoint to resume from."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minionerec.errors import CatalogError, ConfigError
from minionerec.model.sid_rows import SidInit, new_rows
from minionerec.sid.index import SidIndex


def load(path: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder or, by name, from the hub.

    Only safetensors weights are read and no code of the checkpoint is run. Attention is sdpa, which tree masks need. A
    tokenizer without padding token pads with its end token; padding is masked and never a label.

    Raises:
        ConfigError: nothing loadable is there; or see `check_tokenizer`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}: not a loadable causal LM ({reason}). Expected a folder with config.json, model.safetensors and "
            "tokenizer files, or a hub name that can be reached."
        ) from None
    check_tokenizer(path, tokenizer, model)
    return model, tokenizer


def check_tokenizer(path: str | Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Give a tokenizer without padding token its end token for that; padding is masked and never a label.

    Raises:
        ConfigError: it has no end token, or tokens that the model has no rows for.
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
    context: int | None = getattr(model.config, "max_position_embeddings", None)
    return context


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

    Rows of tokens that are already there stay: a checkpoint trained with SIDs can be trained further. Where new rows begin is
    told in `model/sid_rows.py`: transformers' default would make them equal to within 1e-6, and SIDs could not be told apart.
    Tied heads stay tied; an untied head is treated alike.

    Args:
        seed: of the new rows.
        init: where they begin.
        titles: the items' titles, for `text`.

    Returns:
        How many tokens were new.
    """
    old = vocabulary_rows(model)
    title_ids = tokenizer(list(titles), add_special_tokens=False)["input_ids"] if init == "text" and titles else []
    places = add_tokens(model, tokenizer, index)
    lacking = [index.token_strings()[place] for place in places]
    generator = torch.Generator().manual_seed(seed)
    rows_of = new_rows(init, index, title_ids, getattr(model.config, "initializer_range", 0.02), generator)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(weight): weight for weight in (cast(torch.Tensor, layer.weight) for layer in layers)}  # one if tied
    ids = tokenizer.get_vocab()
    rows = [ids[text] for text in lacking]
    with torch.no_grad():
        for weight in embeddings.values():
            known = weight[: min(old, len(tokenizer) - len(lacking))].float()
            weight[rows] = rows_of(known, places).to(weight.dtype)
    return len(lacking)


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: SidIndex) -> list[int]:
    """Add the SID tokens that the tokenizer lacks, and rows for them whose values are not set; see `add_sid_tokens`.

    Returns:
        the places of the new tokens in `index.token_strings()`.
    """
    known = tokenizer.get_vocab()
    places = [place for place, text in enumerate(index.token_strings()) if text not in known]
    lacking = [index.token_strings()[place] for place in places]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in lacking])
    if len(tokenizer) > vocabulary_rows(model):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return places


def sid_token_ids(tokenizer: PreTrainedTokenizerBase, index: SidIndex) -> torch.Tensor:
    """The SIDs of all items as token ids: (items, levels) int64, -1 where a shorter SID has no code.

    Raises:
        CatalogError: the tokenizer lacks a SID token, or splits one.
    """
    known = tokenizer.get_vocab()
    missing = [text for text in index.token_strings() if text not in known]
    if missing:
        raise CatalogError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: lacks {len(missing)} of the catalog's "
            f"{len(index.token_strings())} SID tokens, the first is {missing[0]}. This checkpoint was not trained with this "
            "SID index: run the sft stage with it, or use the checkpoint's own index."
        )
    split = [text for text in index.token_strings() if tokenizer.encode(text, add_special_tokens=False) != [known[text]]]
    if split:
        raise CatalogError(f"The tokenizer splits the SID token {split[0]} into several tokens; add it as a token first.")
    starts = torch.tensor([0, *index.codebook_sizes[:-1]]).cumsum(0)
    flat = torch.tensor([known[text] for text in index.token_strings()])
    codes = torch.from_numpy(index.codes).long()
    return flat[codes.clamp(min=0) + starts].masked_fill(codes < 0, -1)
