import copy
from types import SimpleNamespace

import pytest
import torch

from minionerec.config import Config, EvalConfig, RlConfig
from minionerec.errors import ConstraintError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.recommend.recommender import Recommender
from minionerec.rl.rollouts import Rollouts, add_targets
from minionerec.rl.step import Step
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.rounded_copy import RoundedCopy
from minionerec.tree import CatalogTrie, SearchGraphs, beam_search
from minionerec.tree.capture import CallRecorder
from tests.rl.toy import G, rows_of, toy_dataset, toy_policy, trainer_of, trie_of
from tests.small import random_dataset


def rolled(trainer, rows, step=0):
    trainer.step = Step(rows)
    trainer.state.global_step = step
    rollouts = trainer.rollout_func([row["prompt"] for row in rows], trainer)
    assert rollouts["prompt_ids"] == [row["prompt"] for row in rows]
    sids = [tuple(sid) for sid in rollouts["completion_ids"]]
    assert sids == [tuple(sid) for sid in trainer.trie.sid(torch.tensor(rollouts["leaf"])).tolist()]
    return [sids[start : start + G] for start in range(0, len(rows), G)]


@pytest.mark.parametrize("kind", ["beams", "stochastic", "sampling", "mixture"])
@pytest.mark.parametrize("add_target", [False, True])
def test_groups_are_valid_ranked_and_the_same_in_any_batch(policy, tmp_path, kind, add_target):
    trainer = trainer_of(policy, tmp_path, rollouts=kind, add_target=add_target)
    rows = rows_of(trainer, 6)
    trie = trie_of(trainer)
    catalog = {tuple(sid) for sid in trie.sids.tolist()}
    groups = rolled(trainer, rows)
    for group, row in zip(groups, rows[::G], strict=True):
        assert set(group) <= catalog
        if kind != "sampling":
            assert len(set(group)) == G
        assert not add_target or tuple(row["target"]) in group
    # Two devices see halves of the batch; a resumed run makes the same step again.
    assert rolled(trainer, rows[: 3 * G]) + rolled(trainer, rows[3 * G :]) == groups
    later = rolled(trainer, rows, step=1)
    assert (later == groups) == (kind == "beams")
    prompt = torch.tensor([rows[0]["prompt"]])
    scores = beam_search(trainer.model.eval(), prompt, trie=trie, num_beams=len(trie), normalise_over="catalog")
    rank = {tuple(sid): place for place, sid in enumerate(scores.tokens[0].tolist())}
    if kind != "beams" and not add_target:
        assert [rank[sid] for sid in groups[0]] == sorted(rank[sid] for sid in groups[0])
    if kind == "mixture":
        assert {0, 1} <= {rank[sid] for sid in groups[0]}


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["beams", "mixture"])
def test_groups_by_graphs_are_those_by_launches(policy, tmp_path, monkeypatch, kind, filtered):
    """Also after a step has changed the weights where they are. On a GPU graphs are taken, here a stand-in for them."""
    trainer = trainer_of(policy, tmp_path, rollouts=kind, filtered=filtered)
    assert trainer.rollout_func._graphs_of(trainer.model) is None  # no GPU
    rows, graphs = rows_of(trainer, 6), SearchGraphs(trainer.model, CallRecorder())
    for turn in range(2):
        launched = rolled(trainer, rows)
        with monkeypatch.context() as patch:
            patch.setattr(Rollouts, "_graphs_of", lambda self, model: graphs)
            assert rolled(trainer, rows) == launched
        assert (graphs.recorded, graphs.replayed) == (1, turn + 1)
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(1.2)


def test_graphs_are_kept_for_a_policy_and_may_be_left_out(monkeypatch):
    monkeypatch.setattr("minionerec.tree.graphs.CudaRecorder", lambda device: CallRecorder())
    trie = CatalogTrie.from_codes(torch.tensor([[1, 3], [2, 3]]))
    policy, other = (SimpleNamespace(device=torch.device("cuda")) for _ in range(2))
    rollouts, without = (Rollouts(trie, RlConfig(num_generations=2), 0, 0, graphs=graphs) for graphs in (True, False))
    kept = rollouts._graphs_of(policy)
    assert kept.model is policy and rollouts._graphs_of(policy) is kept and rollouts._graphs_of(other).model is other
    assert without._graphs_of(policy) is None


@pytest.mark.parametrize("bf16", [False, True])
def test_rollouts_compute_in_the_format_of_the_training(policy, tmp_path, bf16):
    """With bf16 a launcher wraps the forward of the model in autocast; the decoder calls what is inside."""
    trainer, seen = trainer_of(policy, tmp_path, rollouts="beams", bf16=bf16), []
    trainer.model.forward = torch.autocast("cpu", torch.bfloat16)(trainer.model.forward)
    trainer.model.base_model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    rolled(trainer, rows_of(trainer, 6))
    assert seen and set(seen) == {torch.bfloat16 if bf16 else torch.float32}
    assert trainer.model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["beams", "mixture"])
def test_rollouts_in_bfloat16_are_those_of_the_rounded_policy_as_it_is_now(policy, tmp_path, kind):
    trainer = trainer_of(policy, tmp_path, rollouts=kind, bf16=True)
    rows, seen = rows_of(trainer, 6), []
    for step in range(2):
        asked = RoundedCopy(trainer.model, "bfloat16").model
        expected = Rollouts(trainer.trie, RlConfig(num_generations=G, rollouts=kind), 0, 0)
        alone = SimpleNamespace(model_wrapped=asked, accelerator=trainer.accelerator, state=SimpleNamespace(global_step=step))
        wanted = expected.completions(expected.groups(rows[::G], alone))
        groups = rolled(trainer, rows, step)
        assert [list(sid) for group in groups for sid in group] == wanted
        seen.append(groups)
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(-1.5)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rollouts_and_validations_in_bfloat16_ask_one_copy(policy, dtype):
    model, tokenizer = toy_policy(str(policy))
    model = copy.deepcopy(model)
    prompts = Prompts(*toy_dataset(), tokenizer)
    evaluator = RankingEvaluator.in_training(Config(eval=EvalConfig(dtype=dtype)), model, prompts, None, "HR@1")
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    rollouts = Rollouts(trie, RlConfig(num_generations=G, bf16=True), 0, 0, evaluator=evaluator)
    asked = rollouts._asked(model)
    assert (evaluator.rounded is None) == (dtype == "float32")
    assert (evaluator.rounded is not None and asked is evaluator.rounded.model) == (dtype == "bfloat16")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    assert rollouts._asked(model) is asked
    assert torch.equal(asked.get_input_embeddings().weight, model.get_input_embeddings().weight.bfloat16())


def test_rollouts_and_validations_of_the_policy_itself_share_its_graphs(policy):
    model, tokenizer = toy_policy(str(policy))
    prompts = Prompts(*toy_dataset(), tokenizer)
    recommender = Recommender(model, prompts)
    recommender.graphs = SearchGraphs(model, CallRecorder())
    evaluator = RankingEvaluator(recommender, recommender.config, None, "HR@1")
    rollouts = Rollouts(recommender.trie, RlConfig(num_generations=G), 0, 0, evaluator=evaluator)
    assert rollouts._graphs_of(model) is recommender.graphs
    assert rollouts._graphs_of(copy.deepcopy(model)) is None  # another model has others; on a CPU, none


@pytest.mark.parametrize("kind", ["beams", "stochastic", "sampling", "mixture"])
def test_what_evaluation_leaves_out_no_group_holds(policy, tmp_path, kind):
    """As with eval.exclude_history; without it, the same rows bring items of their own history."""
    _, index = random_dataset()

    def recommended(filtered):
        trainer = trainer_of(policy, tmp_path, rollouts=kind, filtered=filtered)
        ids = checkpoint.sid_token_ids(trainer.processing_class, index).tolist()
        item_of = {tuple(sid): item for item, sid in enumerate(ids)}  # the toy's items have SIDs of their own
        assert len(item_of) == len(ids)
        groups = rolled(trainer, rows if rows else rows_of(trainer, 12))
        return trainer, [{item_of[sid] for sid in group} for group in groups]

    rows: list = []
    trainer, groups = recommended(filtered=True)
    rows = rows_of(trainer, 12)
    hidden = [set(row["hidden"]) for row in rows[::G]]
    assert all(hidden) and not any(group & items for group, items in zip(groups, hidden, strict=True))
    _, unfiltered = recommended(filtered=False)
    assert any(group & items for group, items in zip(unfiltered, hidden, strict=True))


def test_a_target_takes_the_last_place_only_where_it_is_missing():
    groups = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert add_targets(groups, torch.tensor([2, 4, 3])).tolist() == [[1, 2, 3], [1, 2, 4], [1, 2, 3]]


def test_a_group_larger_than_the_catalog(policy, tmp_path):
    with pytest.raises(ConstraintError, match="A group needs 36 SIDs, but the catalog has only"):
        trainer_of(policy, tmp_path, num_generations=36)
