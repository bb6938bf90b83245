"""What stands for an item in a prompt, and the untrained model that knows how to read it.

`text`: the title. `sid`: the semantic ID of the run's stage `sid`. `id`: a token of its own, whose row is learnt. `vector`:
such a token too, but in place of its row stands the item's frozen text vector, through one linear layer (`model/item_text.py`).
"""

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from minionerec.artifacts import require
from minionerec.config import Config, ScoreConfig
from minionerec.data.dataset import Dataset
from minionerec.data.pairs import PairSet
from minionerec.errors import ConfigError
from minionerec.model import base, checkpoint, item_text, scratch
from minionerec.prompts.pairs import NO, YES, PairWords
from minionerec.prompts.plain_text import PlainText
from minionerec.scoring.titles import titles
from minionerec.sid.encoder import item_vectors, vector_inputs, vector_origin, vector_settings
from minionerec.sid.index import SidIndex

WORDS = PairWords.of(ScoreConfig())  # of training


def item_sections(config: Config) -> dict[str, Any]:
    """What decides the items' vectors, for keys; empty unless a prompt shows them."""
    return {"vectors": vector_settings(config)} if config.yes_no.items == "vector" else {}


def item_inputs(config: Config, items: str) -> dict[str, str]:
    """Digests of what the items are shown by.

    Args:
        items: as `yes_no.items`.

    Raises:
        ArtifactError: the run has no semantic IDs.
    """
    if items == "sid":
        return {"sid": require(config.folder / "sid", "minionerec sid").digest}
    return vector_inputs(vector_origin(config)[0]) if items == "vector" else {}


def index_of(config: Config, pairs: PairSet, items: str) -> SidIndex | None:
    """The items' tokens: the run's semantic IDs, or IDs of one token each; None if items are shown by their titles."""
    if items == "sid":
        return SidIndex.load(config.folder / "sid", Dataset.load(config.folder / "data"))
    if items == "text":
        return None
    count = len(pairs.catalog)
    return SidIndex(np.arange(count, dtype=np.int32)[:, None], (count,), dataset_digest="", encoder="one token an item")


class Shown(NamedTuple):
    """What prompts show of the items.

    Attributes:
        items: of each item of the catalog.
        tokens: ids of the items' own tokens, ascending; none if items are shown by their titles.
    """

    items: list[str]
    tokens: list[int]

    @classmethod
    def of(cls, pairs: PairSet, index: SidIndex | None, tokenizer: PreTrainedTokenizerBase) -> "Shown":
        """Of a tokenizer that knows the items' tokens.

        Raises:
            CatalogError: it lacks one, or splits it.
            DataError: titles are shown, and an item has none.
        """
        if index is None:
            return cls(titles(pairs, PlainText(tokenizer)), [])
        checkpoint.sid_token_ids(tokenizer, index)  # refuses a tokenizer that splits them
        vocabulary = tokenizer.get_vocab()
        ids = sorted(vocabulary[text] for text in index.token_strings())
        return cls([index.text(item) for item in range(len(index.codes))], ids)


def starting_model(config: Config, pairs: PairSet, index: SidIndex | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained model and its tokenizer, which has the words of the prompts and, with an index, the items' tokens.

    Raises:
        ConfigError: the model cannot be loaded, or items are shown by vectors and it is no Qwen2.
    """
    texts = [text for name in ("text", "title") for text in pairs.catalog[name].to_list()]
    words = [*asdict(WORDS).values(), f"{WORDS.suffix} {YES}", f"{WORDS.suffix} {NO}"]
    corpus = [*texts, *(words * len(pairs.catalog))]
    if index is not None:
        model, tokenizer = base.base_model(config.model, index, corpus, config.seed, titles=pairs.catalog["title"].to_list())
        if config.yes_no.items == "vector":
            model = _with_vectors(config, pairs, index, model, tokenizer)
        return model, tokenizer
    if config.model.init == "from_scratch":
        return scratch.create(corpus, config.model, config.seed)
    return checkpoint.load(str(config.model.path), config.model.dtype)


def _with_vectors(
    config: Config, pairs: PairSet, index: SidIndex, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    if type(model) is not Qwen2ForCausalLM:
        raise ConfigError(
            f"yes_no.items is vector, but {config.model.path} is a {type(model).__name__}: vectors are put into Qwen2 models "
            "only, such as those from scratch. Choose such a model, or other items."
        )
    tokens, vectors = checkpoint.sid_token_ids(tokenizer, index), np.asarray(item_vectors(pairs, *vector_origin(config)))
    extended = item_text.with_item_texts(model, tokens, vectors, text_input=True, text_output=False, seed=config.seed)
    extended.config.text_replaces = True
    return extended
