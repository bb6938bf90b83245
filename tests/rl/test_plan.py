import pytest

from minionerec.config import RlConfig
from minionerec.rl import plan
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.plan import planned_work
from minionerec.tree import CatalogTrie, catalog_logprobs
from tests.rl.test_rows import TASKS, sampled
from tests.rl.test_rows import prompts as prompts  # the fixture

EXACT = {"objective": "exact", "normalise_over": "catalog", "rewards": {"rule": 1.0}}


def planned(prompts, tmp_path, **fields):
    batch = {"num_generations": 4, "prompts_per_step": 8, "micro_batch_prompts": 4}
    config = RlConfig(**{**batch, **fields})
    examples = sampled(prompts, tasks=TASKS[:1], prompts_per_step=8, micro_batch_prompts=4)
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    arguments = grpo_arguments(config, trie.levels, 0, tmp_path, len(examples))
    return examples, trie, planned_work(examples, trie, arguments, config)


def test_a_step_of_rollouts(prompts, tmp_path):
    examples, _, plain = planned(prompts, tmp_path)
    longest = max(len(example.prompt) for example in examples)
    assert plain.rollout == plain.cached == 4 * (longest + 4 * 2)  # four prompts, of each three codes of four SIDs but the last
    assert (plain.micro, plain.accumulation, plain.reference) == (4, 2, True)
    _, _, more = planned(prompts, tmp_path, sft_weight=0.1)
    assert more.largest[0].predicting > plain.largest[0].predicting


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 16),
        ({"rollouts": "mixture"}, 0),  # its beams are over the catalog, too, to rank with the draws
        ({"rollouts": "stochastic"}, 0),
        ({"normalise_over": "catalog"}, 0),
        ({"dynamic_sampling": "filter"}, 32),  # a whole step at once
    ],
)
def test_rollouts_over_the_vocabulary_need_rows_of_the_head(prompts, tmp_path, fields, rows):
    assert planned(prompts, tmp_path, **fields)[2].head_rows == rows


def rows_of(trie, length):
    return catalog_logprobs.PrefixRows.of(trie, catalog_logprobs.number_of_rows(trie, length)).tokens.shape


def test_the_exact_objective_computes_the_catalog_and_rolls_nothing_out(prompts, tmp_path, monkeypatch):
    examples, trie, exact = planned(prompts, tmp_path, **EXACT)
    longest = max(len(example.prompt) for example in examples)
    prefixes = len({tuple(sid[:level]) for sid in trie.sids.tolist() for level in (1, 2)})
    assert exact.rollout == exact.cached == 0
    assert (exact.largest[-1].rows, exact.largest[-1].length) == (4, longest + prefixes)
    assert exact.largest[-1].predicting == 4 * (prefixes + 1)
    monkeypatch.setattr(catalog_logprobs, "ROW_PREFIXES", 5)  # so the prefixes are cut into several rows
    monkeypatch.setattr(catalog_logprobs, "PER_PROMPT_TOKEN", 0)
    parts, nodes = rows_of(trie, longest)
    assert parts > 1 and parts * nodes >= prefixes
    largest = planned(prompts, tmp_path, **EXACT)[2].largest[-1]
    assert (largest.rows, largest.length, largest.predicting) == (4 * parts, longest + nodes, 4 * parts * (nodes + 1))
    # A longer prompt may take fewer rows and less memory, so each length may be that of the costliest batch.
    monkeypatch.setattr(catalog_logprobs, "number_of_rows", lambda trie, length: 1 if length == longest else 4)
    monkeypatch.setattr(plan, "number_of_rows", catalog_logprobs.number_of_rows)
    shapes = planned(prompts, tmp_path, **EXACT)[2].largest
    lengths = sorted({len(example.prompt) for example in examples})
    assert len(shapes) == len(lengths) > 1
    assert shapes[-1].positions == 4 * (longest + prefixes) < max(shape.positions for shape in shapes)


def test_groups_without_signal_are_looked_for_a_step_at_a_time(prompts, tmp_path):
    _, _, plain = planned(prompts, tmp_path)
    _, _, filtered = planned(prompts, tmp_path, dynamic_sampling="filter")
    assert (filtered.rollout, filtered.cached) == (plain.rollout, 2 * plain.cached)
    _, _, refilled = planned(prompts, tmp_path, dynamic_sampling="refill", refill_rounds=2)
    assert (refilled.rollout, refilled.cached) == (3 * plain.rollout, 2 * plain.cached)


@pytest.mark.parametrize(
    ("fields", "reference"),
    [({"beta": 0.0}, False), ({"beta": 0.0, "objective": "sdpo", "add_target": True}, True)],
)
def test_the_reference_model_counts_if_it_is_loaded(prompts, tmp_path, fields, reference):
    assert planned(prompts, tmp_path, **fields)[2].reference == reference
