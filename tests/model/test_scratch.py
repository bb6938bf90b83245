import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import ModelConfig
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import tokenizer_corpus
from tests.examples import examples
from tests.small import random_dataset

DATASET, INDEX = random_dataset()
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=400)
TEXT = st.text(string.ascii_letters + string.digits + " '.:-\n\t") | st.text()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The tokenizer as it was trained, and as it is read back with its model."""
    model, tokenizer = scratch.create(tokenizer_corpus(DATASET), SIZES, 0)
    checkpoint.add_sid_tokens(model, tokenizer, INDEX, 0)
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(model, tokenizer, folder)
    return tokenizer, checkpoint.load(folder)[1]


@examples(300)
@given(st.lists(TEXT | st.sampled_from([INDEX.text(item) for item in range(5)]), max_size=4).map("".join))
def test_saved_and_loaded_it_gives_the_same_tokens_and_any_text_comes_back(both, text):
    trained, loaded = both
    ids = trained(text)["input_ids"]
    assert ids == loaded(text)["input_ids"]
    assert trained.decode(ids) == trained.backend_tokenizer.normalizer.normalize_str(text)


def test_the_vocabulary_is_as_large_as_asked_with_the_tokens_of_the_sids(both):
    trained, loaded = both
    assert len(trained) == len(loaded) <= SIZES.vocabulary + len(INDEX.token_strings())
    assert (loaded.eos_token, loaded.pad_token, loaded.unk_token_id) == (scratch.END, scratch.PAD, loaded.eos_token_id)
    assert trained.get_vocab() == loaded.get_vocab()
