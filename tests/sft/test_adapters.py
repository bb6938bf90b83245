import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minionerec.artifacts import read_json
from minionerec.config import ModelConfig, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.model import adapters, checkpoint, scratch
from minionerec.pipeline import run
from minionerec.sft.train import starting_model
from minionerec.sid.index import SidIndex
from minionerec.tree import Branch, CatalogTrie, beam_search, pack, tree_logprobs

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


def trained(copy, folder, tied, **fields):
    """A run from a saved base model; returns its config, the untrained model with SID rows, and the SIDs' token ids."""
    _, tokenizer = scratch.create(["any text of theirs", "lamp chair table number"], SIZES, 0)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 3, tie_word_embeddings=tied, **sizes))
    checkpoint.save(model, tokenizer, folder / "base")
    made = copy(base=folder / "base", epochs=2, evaluations=2, weight_decay=0.1, **fields)
    run(made, ("sft",))
    dataset = Dataset.load(made.folder / "data")
    index = SidIndex.load(made.folder / "sid", dataset)
    base, tokenizer = starting_model(made, dataset, index)
    return made, base, checkpoint.sid_token_ids(tokenizer, index)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_sid_rows_alone_change_bit_for_bit(copy, tmp_path, tied):
    made, base, sids = trained(copy, tmp_path, tied, train="sid_rows")
    model, _ = checkpoint.load(made.folder / "sft/model")
    assert model.config.tie_word_embeddings == tied
    rows, width = sids.unique(), base.config.hidden_size
    names = {"model.embed_tokens.weight", "lm_head.weight"}
    before, after = base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        same = (before[name] == after[name]).view(len(before[name]), -1).all(1)
        expected = torch.ones(len(same), dtype=torch.bool)
        if name in names:
            expected[rows] = False
        assert torch.equal(same, expected), name
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert metrics["trainable"] == len(rows) * width * (1 if tied else 2)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in base.parameters())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_lora_is_saved_merged_and_the_adapter_gives_the_same_outputs(copy, tmp_path, tied):
    made, base, sids = trained(copy, tmp_path, tied, train="lora", lora_rank=4, lora_dropout=0.1)
    model = checkpoint.load(made.folder / "sft/model")[0].eval()
    start = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = peft.PeftModel.from_pretrained(base, made.folder / "sft/adapter").eval()
    prompt, trie = torch.tensor([[5, 9, 11, *sids[0].tolist()]]), CatalogTrie.from_codes(sids)
    with torch.no_grad():
        logits = model(prompt).logits
        torch.testing.assert_close(adapted(prompt).logits, logits, atol=1e-5, rtol=1e-5)
        branches = [Branch(prompt[0].tolist(), sid, is_sid=True) for sid in sids[:3].tolist()]
        batch = pack(branches, row_tokens=32, trie=trie)
        ours, theirs = (tree_logprobs(one, batch, trie=trie).logprobs for one in (adapted, model))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for normalise_over in ("vocabulary", "catalog"):  # the search reads the head of a model with adapters in its own way
        ours, theirs = (
            beam_search(one, prompt, trie=trie, num_beams=5, normalise_over=normalise_over) for one in (adapted, model)
        )
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
    merged, saved = adapted.merge_and_unload().state_dict(), model.state_dict()
    assert merged.keys() == saved.keys() and all(torch.equal(merged[name], saved[name]) for name in merged)
    rows = sids.unique()
    others = torch.ones(len(saved["model.embed_tokens.weight"]), dtype=torch.bool).index_fill(0, rows, False)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(saved[name][others], start[name][others]) and (saved[name][rows] != start[name][rows]).any(1).all()
    changed = {name.split(".")[-2] for name in saved if not torch.equal(saved[name], start[name])}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert changed == linear | {"embed_tokens", "lm_head"}


def test_refused(monkeypatch):
    model, _ = scratch.create(["any text of theirs"], SIZES, 0)
    with pytest.raises(ConfigError, match=r"sft.lora_targets \['nothing'\]: Target modules .*nothing.* not found"):
        adapters.attach(model, SftConfig(train="lora", lora_targets=["nothing"]), [1, 2])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"sft.train lora needs PEFT, which is not installed: pip install 'minionerec\[lora\]'"
    ):
        adapters.attach(model, SftConfig(train="lora"), [1, 2])
    assert adapters.attach(model, SftConfig(), [1, 2]) is model
