import math
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minionerec.config import Config, RewardName, RlConfig
from minionerec.errors import ArtifactError, CatalogError
from minionerec.rl import rewards
from minionerec.rl.rewards import Context, collaborative, popularity, prefix, ranking, ranking_only, rule, semantic
from tests.examples import examples
from tests.launch import ROOT
from tests.small import random_dataset

pytestmark = pytest.mark.fast

NONE = Context()
GROUP = [[1, 2], [3, 4], [5, 6], [7, 8]]
# Five items; the second and third share a SID, the last one's is short.
SIDS = [[1, 2], [3, 4], [3, 6], [7]]
ITEMS = [[0], [1, 2], [3], [4]]
WEIGHTS = [1, 0.6309298, 0.5, 0.4306766]  # 1 / log2(rank + 2)
TOTAL = 2.5616064


def rewarded(reward, completions, target, train_row=None):
    """The rewards of these SIDs, with the numbers that the trie gives them; -1 is no SID."""
    leaves = [SIDS.index(sid) if sid in SIDS else -1 for sid in [*completions, target]]
    return reward(completions, target, Context(train_row, leaves[:-1], leaves[-1]))


@pytest.mark.parametrize("hit", range(4))
def test_a_hit_at_each_rank(hit):
    target = GROUP[hit]
    penalties = [0.0 if rank == hit else -weight / TOTAL for rank, weight in enumerate(WEIGHTS)]
    assert rule(GROUP, target, NONE) == [float(rank == hit) for rank in range(4)]
    assert ranking_only(GROUP, target, NONE) == pytest.approx(penalties)
    assert ranking(GROUP, tuple(target), NONE) == pytest.approx([p + (rank == hit) for rank, p in enumerate(penalties)])


def test_no_hit_is_zero_everywhere():
    for reward in (rule, ranking_only, ranking, prefix):
        assert reward(GROUP, [9, 9], NONE) == [0, 0, 0, 0]


def test_ties_and_repeated_completions_are_all_hits():
    group = [[1, 2], [3, 4], [1, 2]]
    total = 1 + 0.6309298 + 0.5
    assert rule(group, [1, 2], NONE) == [1, 0, 1]
    assert ranking(group, [1, 2], NONE) == pytest.approx([1, -0.6309298 / total, 1])


def test_the_released_numbers():
    """G = 16: weights 0.164 to 0.040; advantages 3.72 to 3.74 for a hit, -0.64 (top) to -0.16 (last) and -0.25 for misses."""
    group = [[rank] for rank in range(16)]
    assert ranking_only(group, [15], NONE)[0] == pytest.approx(-0.164, abs=1e-3)
    assert ranking_only(group, [0], NONE)[15] == pytest.approx(-0.040, abs=1e-3)

    def advantages(reward, hit):
        values = np.array(reward(group, [hit], NONE))
        return ((values - values.mean()) / (values.std(ddof=1) + 1e-4)).tolist()

    for hit in range(16):
        assert 3.715 <= advantages(ranking, hit)[hit] <= 3.745
        assert advantages(rule, hit) == pytest.approx([3.75 if rank == hit else -0.25 for rank in range(16)], abs=3e-3)
    assert advantages(ranking, 1)[0] == pytest.approx(-0.64, abs=5e-3)
    assert advantages(ranking, 14)[15] == pytest.approx(-0.16, abs=5e-3)
    assert advantages(ranking, 16) == [0] * 16


@examples(100)
@given(st.integers(2, 32), st.data())
def test_only_the_hit_is_rewarded_and_higher_misses_cost_more(size, data):
    hit = data.draw(st.integers(0, size - 1))
    values = ranking([[rank] for rank in range(size)], [hit], NONE)
    misses = [value for rank, value in enumerate(values) if rank != hit]
    assert values[hit] == 1
    assert misses == sorted(misses)
    assert all(-1 < value < 0 for value in misses)


def test_prefix_credits_each_correct_level_up_to_the_first_wrong_one():
    group = [[1, 2, 3], [1, 2, 9], [1, 9, 3], [9, 2, 3], [1, 2]]
    assert prefix(group, [1, 2, 3], NONE) == pytest.approx([1, 2 / 3, 1 / 3, 0, 2 / 3])
    assert prefix([[1, 2, 3], [1, 2]], [1, 2], NONE) == pytest.approx([2 / 3, 1])  # the longer SID is another item's


def test_semantic_is_the_cosine_of_the_sids_mean_vectors():
    vectors = np.array([[2, 0], [1, 0], [0, 5], [3, -3], [0, 0]], dtype=np.float32)  # lengths do not matter
    reward = semantic(vectors, ITEMS)
    half = math.sqrt(0.5)  # [3, 4] points to (1, 1): the mean of two unit vectors
    assert rewarded(reward, SIDS, [1, 2]) == pytest.approx([1, half, half, 0])
    assert rewarded(reward, SIDS, [3, 4]) == pytest.approx([half, 1, 0, 0])
    assert rewarded(reward, SIDS, [7]) == [0, 0, 0, 0]  # an unreadable text is like nothing, not even itself


def test_collaborative_is_the_baselines_standard_score_after_the_rows_own_history():
    states = np.array([[1.0, 0], [0, 1.0]])
    vectors = np.array([[1.0, 0], [2.0, 0], [3.0, 4], [4.0, 0], [0, 0]])
    bias = np.array([0.0, 0, 0, 0, 5])
    reward = collaborative(states, vectors, bias, ITEMS)
    # Row 0 scores 1 2 3 4 5: mean 3, deviation sqrt(2). [3, 4] stands for items 1 and 2; the better one counts.
    expected = [-2 / math.sqrt(2), 0, 1 / math.sqrt(2), 2 / math.sqrt(2)]
    assert rewarded(reward, SIDS, [1, 2], train_row=0) == pytest.approx(expected)
    assert rewarded(reward, SIDS, [7], train_row=0) == pytest.approx(expected)  # the target plays no part
    deviation = math.sqrt((1.8**2 * 3 + 2.2**2 + 3.2**2) / 5)  # row 1 scores 0 0 4 0 5
    assert rewarded(reward, [[3, 4]], [7], train_row=1) == pytest.approx([2.2 / deviation])
    assert rewarded(reward, SIDS, [7]) == [0, 0, 0, 0]  # a title has no history


def test_popularity_takes_most_from_the_most_popular_sid():
    reward = popularity(np.array([0, 1, 2, 1, 7]), ITEMS)
    expected = [0, -math.log(4) / math.log(8), -math.log(2) / math.log(8), -1]  # [3, 4] was bought three times
    assert rewarded(reward, SIDS, [7]) == pytest.approx(expected)
    assert rewarded(popularity(np.zeros(5, dtype=int), ITEMS), [[7]], [7]) == [0]


@pytest.mark.parametrize("reward", [semantic(np.eye(5), ITEMS), popularity(np.arange(5), ITEMS)])
def test_what_is_no_sid_has_no_reward(reward):
    with pytest.raises(CatalogError, match=r"\[3, 5\] is not a SID"):
        rewarded(reward, [[3, 5]], [7])


def test_every_name_of_the_configuration_has_a_reward():
    assert {*rewards.REWARDS, *rewards.WITH_TABLES} == set(get_args(RewardName))


def test_every_reward_is_documented():
    rows = (ROOT / "docs/rl.md").read_text().partition("## Rewards")[2].partition("\n## ")[0].splitlines()
    assert {row.split("`")[1] for row in rows if row.startswith("| `")} == set(get_args(RewardName))


@pytest.fixture
def run(tmp_path):
    """A configuration, its dataset, the items of each SID, and where its baseline's vectors belong."""
    dataset, index = random_dataset()
    config = Config(out=str(tmp_path), rl=RlConfig(rewards={"prefix": 1, "collaborative": 0.5, "popularity": 0.1}))
    folder = tmp_path / "baselines" / "sasrec"
    folder.mkdir(parents=True)
    sids, leaf_of_item = np.unique(index.codes, axis=0, return_inverse=True)
    items = [np.flatnonzero(leaf_of_item == leaf).tolist() for leaf in range(len(sids))]
    return SimpleNamespace(config=config, dataset=dataset, items=items, vectors=folder / "vectors.safetensors")


def states(dataset, *splits):
    return {split: np.zeros((len(dataset.split(split)), 4)) for split in splits}


def test_build_reads_the_runs_own_tables(run):
    rng = np.random.default_rng(0)
    arrays = {"train": rng.normal(size=(len(run.dataset.train), 4)), "items": rng.normal(size=(30, 4)), "bias": np.zeros(30)}
    save_file(arrays | states(run.dataset, "valid", "test"), run.vectors)
    built = rewards.build_rewards(run.config, run.dataset, run.items)
    assert list(built) == ["prefix", "collaborative", "popularity"] and built["prefix"] is prefix

    def context(item):
        leaf = next(leaf for leaf, items in enumerate(run.items) if item in items)
        return Context(3, [leaf], leaf)

    scores = arrays["items"] @ arrays["train"][3]
    best = context(int(scores.argmax()))
    assert built["collaborative"]([[1]], [1], best) == pytest.approx([(scores.max() - scores.mean()) / scores.std()])
    most = context(run.dataset.train["target"].mode()[0])
    assert built["popularity"]([[1]], [1], most)[0] <= -0.9  # alone, or with another item of the same SID


def test_a_baseline_that_cannot_score(run):
    with pytest.raises(ArtifactError, match=r"needs the vectors of a baseline.*sasrec leaves none"):
        rewards.build_rewards(run.config, run.dataset, run.items)
    run.vectors.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"not a baseline's vectors .* minionerec baseline --baseline.model sasrec"):
        rewards.build_rewards(run.config, run.dataset, run.items)
    arrays = {
        "train": np.zeros((2, 4)),
        "items": np.zeros((30, 4)),
        "bias": np.zeros(30),
        **states(run.dataset, "valid", "test"),
    }
    save_file(arrays, run.vectors)
    with pytest.raises(ArtifactError, match="2 train rows, but the run has 104"):
        rewards.build_rewards(run.config, run.dataset, run.items)
    with pytest.raises(ArtifactError, match=r"no finished artefact.*minionerec baseline --baseline.model sasrec"):
        rewards.reward_sources(run.config, "digest")
