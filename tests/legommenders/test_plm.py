"""The item encoder `plm` on tiny random models, a sentence encoder and causal LMs."""

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from minionerec.config import LegoPlmConfig
from minionerec.errors import ConfigError
from minionerec.legommenders import plm
from minionerec.legommenders.model import Legommender
from minionerec.model import loading
from tests.legommenders.language_models import LAYERS, MODELS, save_models
from tests.legommenders.parts import ITEMS, item_fields, lego

HISTORIES, CANDIDATES = torch.tensor([[0, 3, 1], [2, -1, -1]]), torch.tensor([[1, 2], [5, 4]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("plm"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))


def model_of(path, user="additive", fields=None, **options):
    torch.manual_seed(0)
    settings = LegoPlmConfig(path=str(path), **options)
    return Legommender(lego("plm", user, "max" if user == "poly" else "dot", plm=settings), fields or item_fields())


@pytest.mark.parametrize("first", range(LAYERS))
@pytest.mark.parametrize("name", MODELS)
def test_kept_states_and_the_layers_above_are_the_whole_model(folders, name, first):
    encoder = model_of(folders / name, tune_from=first).item.eval()
    whole, tokenizer = loading.read_layers(folders / name, weights=True)
    seen = []
    encoder.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(torch.arange(ITEMS))
    for item, sentence in enumerate(item_fields().sentences):
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = whole.eval()(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(seen[0][item, : ids.shape[1]], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_trained_layer_all_states_are_the_models_last(folders, name):
    encoder = model_of(folders / name).item
    whole, tokenizer = loading.read_layers(folders / name, weights=True)
    ids = tokenizer(item_fields().sentences[2], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = whole.eval()(input_ids=ids).last_hidden_state[0]
    start = int(encoder.starts[2])
    torch.testing.assert_close(encoder.rows[start : start + ids.shape[1]], expected, atol=1e-6, rtol=1e-5)
    assert encoder.layers_above is None and not encoder.state_dict().keys() & {"rows", "starts", "lengths"}


@pytest.mark.parametrize("name", MODELS)
def test_only_the_layers_above_train(folders, name):
    model = model_of(folders / name, tune_from=-1)
    model(HISTORIES, CANDIDATES).sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert all(f".{LAYERS - 1}." in name for name in trained if "layers_above" in name)
    assert len(list(model.slow_parameters())) == sum("layers_above" in name for name in trained) > 0


@pytest.mark.parametrize("name", MODELS)
def test_adapters_leave_the_layers_weights_alone_and_start_at_the_model(folders, name):
    pytest.importorskip("peft")
    model, plain = model_of(folders / name, tune_from=1, lora_rank=2), model_of(folders / name, tune_from=1)
    plain.load_state_dict(model.state_dict() | plain.state_dict(), strict=False)
    slow = [name for name, weight in model.named_parameters() if weight.requires_grad and "layers_above" in name]
    assert slow and all("lora" in name for name in slow)
    items = torch.arange(ITEMS)
    for both in (model.item.linear, model.item.sum, plain.item.linear, plain.item.sum):
        torch.manual_seed(1)
        for weight in both.parameters():
            torch.nn.init.normal_(weight)
    torch.testing.assert_close(model.eval().item_vectors(items), plain.eval().item_vectors(items), atol=1e-6, rtol=1e-5)
    model(HISTORIES, CANDIDATES).sum().backward()
    assert all(weight.grad is not None for weight in model.slow_parameters())


@pytest.mark.parametrize("pooling", ["additive", "mean", "last"])
def test_every_pooling_trains_and_padding_changes_nothing(folders, pooling):
    model = model_of(folders / "bert", user="poly", pooling=pooling, tune_from=2).eval()
    vectors = model.item_vectors(torch.arange(ITEMS))
    for item in range(ITEMS):
        torch.testing.assert_close(model.item_vectors(torch.tensor([item]))[0], vectors[item], atol=1e-6, rtol=1e-5)
    model.train()(HISTORIES, CANDIDATES).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.requires_grad)


def test_states_are_computed_once(folders, monkeypatch):
    first = model_of(folders / "bert")
    monkeypatch.setattr(plm, "packed_states", lambda *args: pytest.fail("computed again"))
    torch.testing.assert_close(model_of(folders / "bert").item.rows, first.item.rows, atol=0, rtol=0)
    with pytest.raises(pytest.fail.Exception):
        model_of(folders / "bert", max_tokens=2)


def test_positions_that_begin_behind_the_padding_token_leave_room_for_fewer_tokens(folders, tmp_path, caplog):
    """RoBERTa counts positions from pad + 1, so that 514 of them read 512 tokens."""
    sizes = {"hidden_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 16}
    RobertaModel(RobertaConfig(**sizes, max_position_embeddings=6, pad_token_id=1)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path)
    encoder = model_of(tmp_path, tune_from=-1).item
    assert int(encoder.lengths.max()) == 4 and "max_tokens 32 is lowered to 4, the model's limit" in caplog.text


@pytest.mark.parametrize("layer", [LAYERS, -LAYERS - 1])
def test_a_layer_that_the_model_lacks_is_refused(folders, layer):
    with pytest.raises(ConfigError, match=rf"lego\.plm\.tune_from is {layer}, but .*bert has 3 layers; expected 0 to 2"):
        model_of(folders / "bert", tune_from=layer)


def test_a_model_that_does_not_come_apart_is_refused(folders, monkeypatch):
    monkeypatch.setattr(plm._Through, "forward", lambda self, states, *args, **kwargs: states)
    monkeypatch.setattr(plm.LayersAbove, "_give", lambda self, layer, args, kwargs: (args, kwargs))
    with pytest.raises(ConfigError, match="a BertModel cannot be split at a layer"):
        model_of(folders / "bert", tune_from=1)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a loadable sentence encoder or causal LM"):
        model_of(tmp_path)
