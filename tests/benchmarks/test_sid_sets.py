"""Several SID sets in one model at a tiny size: the dataset, and ranks by the mean over the sets against the literal one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.artifacts import read_json
from minionerec.config import ModelConfig
from minionerec.prompts.builder import Prompts
from minionerec.recommend.recommender import Recommender
from minionerec.sid.index import SidIndex, parse_token
from minionerec.tree import CatalogTrie, score_catalog
from tests.small import leave_one_out, random_dataset, untrained_model, write_config


@pytest.fixture
def sid_sets(script):
    return script("sid_sets")


def test_every_user_and_item_is_there_once_per_set(sid_sets):
    dataset = leave_one_out({"a": [0, 1, 2, 3, 1], "b": [3, 2, 1]}, 4, 5)
    indexes = [SidIndex(np.array(codes), (2, 3), dataset.digest) for codes in ([[0, 0], [0, 1], [1, 0], [1, 2]], [[1, 1]] * 4)]
    made, tokens = sid_sets.in_sets(dataset, indexes)
    assert made.catalog["item_id"].to_list() == [str(item) for item in range(8)]
    assert made.catalog["title"].to_list() == ["0", "1", "2", "3"] * 2
    assert made.valid["history"].to_list() == [[0, 1, 2], [3], [4, 5, 6], [7]]
    assert made.valid["target"].to_list() == [3, 2, 7, 6]
    assert made.train["user"].n_unique() == 2 * dataset.train["user"].n_unique()
    assert made.train.schema == dataset.train.schema
    assert tokens[3] == ["<a_1>", "<b_2>"] and tokens[4:] == [["<a_3>", "<b_4>"]] * 4


def test_ranks_by_the_mean_are_those_of_all_items_scored_and_averaged(sid_sets):
    original, index = random_dataset(users=40)
    other = replace(index, codes=np.random.default_rng(1).permutation(index.codes))
    items, rows = len(original.catalog), len(original.valid)
    dataset, tokens = sid_sets.in_sets(original, [index, other])
    codes = np.array([[code for _, code in map(parse_token, sid)] for sid in tokens])
    both = SidIndex(codes, (12, 12, 12), dataset.digest)
    model, tokenizer = untrained_model(dataset, both, ModelConfig(hidden_size=16, intermediate_size=16, layers=1, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2  # far from even
    recommender = Recommender(model, Prompts(dataset, both, tokenizer))
    sets = [sid_sets.SetOfModel(recommender, place, 2) for place in range(2)]
    targets = original.valid["target"].to_numpy()

    whole = CatalogTrie.from_codes(recommender.prompts.sid_tokens)  # of both sets; a set's items are cut out and normalised
    chances = []
    for place in range(2):
        histories = dataset.valid["history"][place * rows : (place + 1) * rows].to_list()
        scores = score_catalog(model, *recommender.encode(histories), trie=whole, normalise_over="catalog")
        p = scores[:, whole.leaf_of_item].exp().double().numpy()[:, place * items : (place + 1) * items]
        chances.append(p / p.sum(1, keepdims=True))
    literal = [(one > one[np.arange(rows), targets, None]).sum(1) for one in (*chances, (chances[0] + chances[1]) / 2)]

    found = sid_sets.rank_together(sets, targets, beams=items, batch_size=7)
    assert [*found.alone.tolist(), found.mean.tolist()] == [ranks.tolist() for ranks in literal]
    assert found.proven.all()
    narrow = sid_sets.rank_together(sets, targets, beams=10, batch_size=7)
    assert 0 < narrow.proven.sum() < rows
    first = np.minimum(literal[2], 10)
    assert np.minimum(narrow.mean, 10)[narrow.proven].tolist() == first[narrow.proven].tolist()


def test_what_is_refused(sid_sets, tmp_path):
    for arguments, message in (
        (["--sets", "1"], "expected 2 or more"),
        (["--eval.exclude_history", "true"], "histories stay in the lists"),
        (["--sft.dropout", "2"], "sft.dropout is 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            sid_sets.main(["--config", "industrial-tiny", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_and_again(sid_sets, tmp_path, capfd):
    path = write_config(tmp_path)
    command = ["--config", str(path), "--out", str(tmp_path / "out"), "--threads", "1", "--eval.num_beams", "20", "--models"]
    command += ["--sft.epochs", "2", "--sft.evaluations", "1", "--sft.batch_size", "8", "--sft.micro_batch", "8"]
    command += ["--model.hidden_size", "32", "--model.intermediate_size", "48"]
    sid_sets.main(command)
    printed = capfd.readouterr().out
    assert "| 2-sets, mean | all |" in printed and "| mean of 2 models | all |" in printed
    found = read_json(tmp_path / "out/2-sets.json")["rankings"]
    assert found["one, by eval"]["all"]["one"]["NDCG@10"]["change"]["value"] == 0
    made = sorted((tmp_path / "out").glob("**/manifest.json"))
    times = [file.stat().st_mtime_ns for file in made]
    sid_sets.main(command)
    assert [file.stat().st_mtime_ns for file in made] == times
    assert capfd.readouterr().out.splitlines()[-5:] == printed.splitlines()[-5:]
