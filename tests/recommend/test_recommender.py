import copy
import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minionerec
from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.errors import ArtifactError, CatalogError, ConfigError, ConstraintError, DataError
from minionerec.eval.decode import SplitDecoder
from minionerec.eval.predictions import read_predictions, write_predictions
from minionerec.recommend.filters import Filters, ItemSets
from minionerec.recommend.recommender import Recommender
from minionerec.training.evaluator import RankingEvaluator
from minionerec.tree import CatalogTrie, SearchGraphs
from minionerec.tree.capture import CallRecorder
from tests import small
from tests.examples import examples

HISTORY = [0, 5, 7]


def scored(recommendation):
    return [(item.index, item.score) for item in recommendation.items]


@pytest.mark.parametrize("stage", ["sft", "rl", None])
def test_the_lists_of_the_evaluation_are_those_of_the_loaded_recommender_byte_for_byte(finished, stage, tmp_path):
    recommender = Recommender.load(str(finished.folder), stage)
    path = finished.folder / "eval" / (stage or "rl") / "predictions.jsonl"
    predictions = read_predictions(path)
    lists = recommender.recommend([prediction.history_ids for prediction in predictions], k=None)
    assert len(lists) == 40
    again = [
        dataclasses.replace(
            prediction,
            items=[item.index for item in ours.items],
            item_ids=[item.item_id for item in ours.items],
            scores=list(dict.fromkeys(item.score for item in ours.items)),
            exact=ours.exact,
        )
        for prediction, ours in zip(predictions, lists, strict=True)
    ]
    write_predictions(tmp_path / "again.jsonl", again)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_offline_online_and_evaluation_make_the_same_lists(finished, tmp_path, capsys):
    predictions = read_predictions(finished.folder / "eval/rl/predictions.jsonl")
    histories = [prediction.history_ids for prediction in predictions]
    frame = pl.DataFrame({"user": [prediction.user for prediction in predictions], "history": histories})
    frame.write_parquet(tmp_path / "users.parquet")
    asked = ["recommend", "--run", str(finished.folder)]
    to_files = [*asked, "--users", str(tmp_path / "users.parquet"), "--out", str(tmp_path / "lists")]
    assert main(to_files) == 0
    printed = capsys.readouterr().out
    assert "40 users in 1 shard, lists of 10, 10 beams." in printed and "users 40, items 400" in printed
    lists = pl.read_parquet(tmp_path / "lists/*.parquet")
    offline = {user: rows for (user,), rows in lists.group_by("user", maintain_order=True)}
    assert list(offline) == frame["user"].to_list()
    inputs = json.loads((tmp_path / "lists/manifest.json").read_text())["inputs"]
    assert set(inputs) == {"data", "sid", "rl", "users"}
    for prediction in predictions:
        rows = offline[prediction.user]
        assert rows["item_id"].to_list() == prediction.item_ids[:10]
        sizes = prediction.sizes or [1] * len(prediction.sids)
        np.testing.assert_allclose(rows["score"], np.repeat(prediction.scores, sizes)[:10], atol=1e-5)
    assert main([*asked, "--history", ",".join(predictions[0].history_ids), "--json"]) == 0
    online = json.loads(capsys.readouterr().out)["items"]
    assert [item["item_id"] for item in online] == predictions[0].item_ids[:10]
    assert main(to_files) == 0 and "up to date" in capsys.readouterr().out


def test_recorded_searches_make_the_same_lists(finished):
    """As on a GPU, with a stand-in for its graphs; only the first search of a list is recorded."""
    plain, recording = Recommender.load(finished.folder), Recommender.load(finished.folder)
    assert plain.graphs is None and plain.config.cuda_graphs == "auto"
    recording.graphs = SearchGraphs(recording.model, CallRecorder())
    histories = [[0, 5, 7], [3], [1, 2, 3, 4, 5, 6], [40, 41]]
    for options in ({}, {"exclude_history": True}, {"deny": [9], "widest": 48}):
        pairs = zip(*(one.recommend(histories, **options) for one in (plain, recording)), strict=True)
        for expected, ours in pairs:
            assert (ours.exact, ours.beams) == (expected.exact, expected.beams)
            assert [item.index for item in ours.items] == [item.index for item in expected.items]
            np.testing.assert_allclose([item.score for item in ours.items], [item.score for item in expected.items], atol=1e-5)
    assert recording.graphs.replayed == 3 and recording.graphs.recorded == 2  # without filters, and with any
    leaves = [one.search(histories, num_beams=10).leaves for one in (plain, recording)]
    assert torch.equal(*leaves) and recording.graphs.replayed == 4


def test_a_run_says_how_its_lists_are_made(finished, tmp_path):
    recommender = Recommender.load(finished.folder)
    assert (recommender.config.num_beams, recommender.config.normalise_over) == (10, "vocabulary")
    assert recommender.max_history == 6
    folder = copied(finished, tmp_path / "run")
    shutil.rmtree(folder / "eval")
    assert Recommender.load(folder).config.num_beams == 10  # of run.yaml
    (folder / "run.yaml").unlink()
    assert Recommender.load(folder).config.num_beams == 50


def test_another_device_or_number_format(finished):
    recommender = Recommender.load(finished.folder, device="cpu", dtype="bfloat16")
    assert recommender.model.dtype == torch.bfloat16
    assert len(recommender.recommend([HISTORY])[0].items) == 10
    with pytest.raises(ConfigError, match="dtype float99: no such number format"):
        Recommender.load(finished.folder, dtype="float99")
    with pytest.raises(ConfigError, match="dtype int8: no such number format"):
        Recommender.load(finished.folder, dtype="int8")
    with pytest.raises(ConfigError, match=r"device gpu: cannot be used .*cuda:0"):
        Recommender.load(finished.folder, device="gpu")


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_alone_and_in_any_batch_a_history_has_the_same_list(make, normalise_over):
    recommender = make(normalise_over=normalise_over, batch_size=7)
    histories = recommender.prompts.dataset.test["history"].to_list()
    together = recommender.recommend(histories, exclude_history=True)
    for history, ours in zip(histories, together, strict=True):
        [alone] = recommender.recommend([history], exclude_history=True)
        assert [item.index for item in alone.items] == [item.index for item in ours.items]
        np.testing.assert_allclose([item.score for item in alone.items], [item.score for item in ours.items], atol=1e-5)
        assert (alone.exact, alone.beams) == (ours.exact, ours.beams)


@examples(40)
@given(data=st.data())
def test_filters_are_the_whole_list_without_what_does_not_pass(recommender, data):
    """Against brute force: without a filter all 20 items are listed, and their scores do not depend on the filter."""
    some = st.lists(st.integers(0, 19), max_size=8)
    filters = [
        Filters(
            allow=data.draw(st.none() | st.lists(st.integers(0, 19), min_size=1, max_size=12)),
            deny=data.draw(some),
            category=data.draw(st.sampled_from([None, "Lamps", "Set of 2"])),
            named=data.draw(st.sampled_from([(), ("even",), ("even", "small")])),
            exclude_history=data.draw(st.booleans()),
        )
        for _ in range(3)
    ]
    histories = [[0, 5, 7], [3], [19, 2, 2, 11]]
    k = data.draw(st.sampled_from([1, 4, 20]))
    recommender.name_items("even", range(0, 20, 2))
    recommender.name_items("small", [f"i{item}" for item in range(12)])
    whole = recommender.recommend(histories, k=None, num_beams=20)
    expected = []
    for wanted, history, everything in zip(filters, histories, whole, strict=True):
        passing = set(range(20)) if wanted.allow is None else set(wanted.allow)
        passing -= {*wanted.deny, *(history if wanted.exclude_history else ())}
        passing -= {item for item in range(20) if wanted.category == ("Lamps" if item % 3 == 0 else "Set of 2")}
        passing -= set(range(1, 20, 2)) if "even" in wanted.named else set()
        passing -= set(range(12, 20)) if "small" in wanted.named else set()
        expected.append([(item.index, item.score) for item in everything.items if item.index in passing])
    if not all(expected):
        with pytest.raises(CatalogError, match=rf"history {expected.index([])}: The filters leave no item of the catalog's 20"):
            recommender.recommend(histories, k, filters)
        return
    for ours, wanted in zip(recommender.recommend(histories, k, filters, num_beams=20), expected, strict=True):
        assert [item.index for item in ours.items] == [item for item, _ in wanted[:k]]
        np.testing.assert_allclose([item.score for item in ours.items], [score for _, score in wanted[:k]], atol=1e-5)
        assert [item.place for item in ours.items] == list(range(1, len(ours.items) + 1))
        assert ours.exact and (ours.reason is None) == (len(wanted) >= k)


@pytest.mark.parametrize("exclude", [False, True])
def test_a_long_list_of_allowed_items_has_one_view_for_all_that_have_it(make, exclude, monkeypatch):
    recommender, histories = make(), [HISTORY, [3, 4], [9, 2, 0]]
    filters = {"allow": list(range(14)), "deny": [6], "exclude_history": exclude}
    short = recommender.recommend(histories, **filters)
    narrowed, original = [], CatalogTrie.narrow
    monkeypatch.setattr(CatalogTrie, "narrow", lambda trie, mask: narrowed.append(mask) or original(trie, mask))
    monkeypatch.setattr("minionerec.recommend.filters._LONG", 12)
    for allow in (range(14), [str(item) for item in recommender.items.ids[13::-1]]):
        assert recommender.recommend(histories, **{**filters, "allow": allow}) == short
    assert len(narrowed) == 1
    other = {item.index for item in recommender.recommend([HISTORY], allow=range(1, 15))[0].items}
    assert len(narrowed) == 2 and other <= {*range(1, 15)}


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("on_unknown", ["error", "skip"])
def test_the_items_of_filters_are_read_once_for_all_histories(make, on_unknown, exclude, monkeypatch):
    recommender, read = make(), []
    original = recommender.items.read
    monkeypatch.setattr(
        recommender.items, "read", lambda items, what, unknown: read.append(what) or original(items, what, unknown)
    )
    extra = ["lamp"] if on_unknown == "skip" else []
    fields = {"allow": [*range(14), *extra], "deny": [6, *extra], "exclude_history": exclude}
    requests = recommender.read([[0, *extra], [3], [9]], on_unknown=on_unknown, **fields)
    assert sorted(read) == ["filter allow", "filter deny", "history 0", "history 1", "history 2"]
    assert [request.skipped for request in requests] == [(*extra, *extra, *extra), (*extra, *extra), (*extra, *extra)]
    hidden = [{6, *([item] if exclude else [])} for item in (0, 3, 9)]
    assert [request.item_filter.passing(range(20)) for request in requests] == [
        [item for item in range(14) if item not in out] for out in hidden
    ]


def test_the_empty_category_is_not_that_of_items_without_one():
    catalog = pl.DataFrame({"item_id": ["a", "b", "c"], "categories": ["Home, Lamps", "", None]})
    assert ItemSets(catalog).of_category("Lamps").tolist() == [True, False, False]
    with pytest.raises(DataError, match=r"category '': no item has it. Items have, for example: \['Home, Lamps'\]"):
        ItemSets(catalog).of_category("")


def test_a_set_can_be_named_again(make):
    recommender = make()
    for ids in (["i3"], ["i4", "i5"]):
        recommender.name_items("in_stock", ids)
        assert {item.item_id for item in recommender.recommend([HISTORY], named=["in_stock"])[0].items} == {*ids}


def test_items_of_one_sid_are_tied_in_catalog_order(recommender):
    [result] = recommender.recommend([HISTORY], k=20)
    by_sid = {}
    for item in result.items:
        by_sid.setdefault(item.sid, []).append(item)
        assert item.item_id == f"i{item.index}" and item.title == recommender.items.titles[item.index]
    assert len(by_sid) == 14
    for group in by_sid.values():
        assert [item.index for item in group] == sorted(item.index for item in group)
        assert len({item.score for item in group}) == 1 and {item.tied for item in group} == {len(group) > 1}
    [hidden] = recommender.recommend([HISTORY], k=20, deny=[2])
    assert not next(item for item in hidden.items if item.index == 1).tied  # nothing that passes has its SID
    assert hidden.reason == "The filters leave 19 items: deny hides 1."
    assert recommender.recommend([HISTORY], k=99)[0].reason == "The catalog has 20 items."


def test_a_narrow_search_is_widened_until_the_list_is_proven(make):
    recommender = make(normalise_over="catalog")
    histories = recommender.prompts.dataset.test["history"].to_list()
    narrow = recommender.recommend(histories, k=2, num_beams=2)
    wide = recommender.recommend(histories, k=2, num_beams=2, widest=20)
    whole = recommender.recommend(histories, k=2, num_beams=20)
    assert not all(ours.exact for ours in narrow) and len({ours.beams for ours in wide}) > 1
    for before, ours, best in zip(narrow, wide, whole, strict=True):
        assert ours.exact and [item.index for item in ours.items] == [item.index for item in best.items]
        assert not before.exact or before == ours
        assert ours.beams == 2 or not before.exact


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_scores_that_are_no_numbers_make_no_list(make, normalise_over):
    """NaN sorts as the highest score: lists, and validations by them, would look like any others."""
    sound = make(normalise_over=normalise_over)
    broken = Recommender(copy.deepcopy(sound.model), sound.prompts, config=sound.config)
    with torch.no_grad():
        broken.model.model.norm.weight[0] = torch.nan
    validated = RankingEvaluator(broken, broken.config, 4, "NDCG@10")
    for ask in (lambda: broken.recommend([HISTORY]), lambda: broken.search([HISTORY], num_beams=3), validated):
        with pytest.raises(ConstraintError, match=r"scores are not numbers .* \(eval\.dtype\)"):
            ask()


def test_a_short_list_of_a_wide_search_can_be_proven_where_the_long_one_is_not(make):
    recommender = make(normalise_over="catalog")
    histories = recommender.prompts.dataset.test["history"].to_list()
    short = recommender.recommend(histories, k=1, num_beams=3)
    long = recommender.recommend(histories, k=None, num_beams=3)
    assert sum(ours.exact for ours in short) > sum(ours.exact for ours in long)


def test_ids_and_indices_may_stand_together(recommender):
    read = recommender.items.read
    assert read(["i3", "i1"], "x") == read([3, "i1"], "x") == read([np.int64(3), np.str_("i1")], "x") == [3, 1]
    assert read(iter(["i3", "lamp", 1]), "x", unknown := []) == [3, 1] and unknown == ["lamp"]
    for wrong in (True, None, 1.0, ["i1"]):
        with pytest.raises(DataError, match="expected an item's id"):
            read(["i3", wrong], "x")


def test_unknown_items_are_named_or_skipped(recommender):
    with pytest.raises(DataError, match=r"history 1: the catalog has no item 'lamp', 20\. Its 20 items have ids like 'i0'"):
        recommender.recommend([["i0"], ["lamp", "i1", 20]])
    with pytest.raises(DataError, match="filter deny: the catalog has no item 'cup'"):
        recommender.recommend([["i0"]], deny=["cup"])
    skipping, clean = (
        recommender.recommend([["lamp", "i1", 20]], deny=["cup"], on_unknown="skip")[0],
        recommender.recommend([[1]])[0],
    )
    assert skipping.skipped == ("lamp", 20, "cup") and scored(skipping) == scored(clean)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"histories": "i0"}, DataError, "histories is the text 'i0'"),
        ({"histories": ["i0"]}, DataError, r"history 0 is the text 'i0'; expected a list of items, such as \['i0'\]"),
        ({"histories": [[True]]}, DataError, "history 0: found True; expected an item's id"),
        ({"histories": [[1.0]]}, DataError, "history 0: found 1.0"),
        ({"k": 0}, ConfigError, "k is 0; expected 1 to"),
        ({"k": 10**9}, ConfigError, "k is 1000000000"),
        ({"num_beams": 5}, ConfigError, "num_beams is 5, fewer than the k 10 items"),
        ({"widest": 5}, ConfigError, "widest is 5, fewer than the 50 beams"),
        ({"on_unknown": "ignore"}, ConfigError, "on_unknown is 'ignore'; expected error or skip"),
        ({"named": ["in_stock"]}, ConfigError, "named 'in_stock': there is no such set of items"),
        ({"deny": "i0"}, ConfigError, "filter deny is the text 'i0'; expected a list"),
        ({"category": "Chairs"}, DataError, "category 'Chairs': no item has it. Items have, for example"),
        ({"filters": [Filters()], "histories": [[1], [2]]}, ConfigError, "1 filters for 2 histories"),
        ({"filters": [{"deny": [1]}]}, ConfigError, "filters holds {'deny': .1.}; expected Filters"),
        ({"category": ["Chairs"]}, ConfigError, "filter category is .'Chairs'.; expected the name of one category"),
        ({"filters": Filters(), "deny": [1]}, ConfigError, "Give filters or deny, not both"),
        ({"deny": range(20)}, CatalogError, "history 0: The filters leave no item of the catalog's 20: deny hides 20"),
        ({"allow": []}, CatalogError, "allow names 0"),
    ],
)
def test_what_cannot_be_answered_is_refused(recommender, arguments, error, message):
    with pytest.raises(error, match=message):
        recommender.recommend(**{"histories": [[0, 1]], **arguments})
    assert recommender.recommend([]) == []


def test_after_an_empty_history_the_popular_items_are_listed_and_flagged(recommender):
    full, empty = recommender.recommend([[0], []], k=5)
    assert (full.fallback, empty.fallback, empty.exact, empty.beams) == (None, "popularity", False, 0)
    counts = [item.score for item in empty.items]
    assert counts == sorted(recommender.popularity.tolist(), reverse=True)[:5]
    [skipped] = recommender.recommend([["lamp"]], k=30, on_unknown="skip", deny=[3])
    assert skipped.fallback == "popularity" and skipped.skipped == ("lamp",) and len(skipped.items) == 19
    assert skipped.reason == "The filters leave 19 items: deny hides 1."


def test_a_long_history_loses_its_oldest_items_and_says_how_many(make):
    recommender = make()
    longest = recommender.max_history
    assert longest == 6
    long, newest = recommender.recommend([[*range(10)], [*range(4, 10)]])
    assert (long.cut, newest.cut) == (4, 0) and scored(long) == scored(newest)
    prompts = dataclasses.replace(recommender.prompts, context=14)  # room for fewer items
    cut = Recommender(recommender.model, prompts).recommend([[*range(10)]])[0].cut
    assert 4 < cut < 10


def test_a_history_that_is_excluded_by_the_evaluation_is_excluded(make):
    recommender = make(exclude_history=True)
    [ours] = recommender.recommend([[*range(10)]], k=20)
    assert sorted(item.index for item in ours.items) == [*range(10, 20)]  # items that the prompt leaves out are hidden too
    assert len(recommender.recommend([[1]], k=20, exclude_history=False)[0].items) == 20
    decoder = SplitDecoder(recommender)
    assert all(not set(prediction.items) & set(prediction.history) for prediction in decoder.predict(range(len(decoder))))


def test_a_search_returns_tensors(recommender):
    result = recommender.search([HISTORY, [3]], num_beams=14)
    hidden = recommender.trie.items(int(result.leaves[0, 0]))
    rest = recommender.search([HISTORY], num_beams=14, trie=recommender.trie.without([hidden]))
    assert rest.leaves[0].tolist() == [*result.leaves[0, 1:].tolist(), -1]
    for histories in ([], [[]]):
        with pytest.raises(DataError, match="history"):
            recommender.search(histories, num_beams=5)


def copied(finished, folder):
    shutil.copytree(finished.folder, folder)
    return folder


def test_a_run_without_rl_gives_the_sft_model(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    shutil.rmtree(folder / "rl")
    expected = read_predictions(folder / "eval/sft/predictions.jsonl")[0]
    [ours] = Recommender.load(folder).recommend([expected.history], k=None)
    assert [item.index for item in ours.items] == expected.items
    with pytest.raises(ArtifactError, match=r"rl: no finished artefact here\. Make it first: minionerec rl"):
        Recommender.load(folder, "rl")


def test_what_does_not_belong_together_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="stage eval: no such training stage; expected one of sft, rl"):
        Recommender.load(finished.folder, "eval")
    with pytest.raises(ArtifactError, match="no finished artefact here"):
        Recommender.load(tmp_path / "nothing")
    folder = copied(finished, tmp_path / "run")
    small.reseal(folder / "rl", inputs={**Manifest.load(folder / "rl").inputs, "sid": "0" * 64})
    with pytest.raises(ArtifactError, match="rl: was made from another sid than the one in this run"):
        Recommender.load(folder)
    trained = Manifest.load(folder / "sft").config
    small.reseal(folder / "sft", config={**trained, "sft": {**trained["sft"], "tasks": ["history_title_to_title"]}})
    with pytest.raises(ConfigError, match=r"was trained on \[history_title_to_title\], none of which has a SID as its answer"):
        Recommender.load(folder, "sft")
    small.reseal(folder / "sft", config={**trained, "prompts": {**trained["prompts"], "words": "0" * 64}})
    with pytest.raises(ConfigError, match=r"sft was trained with other prompts \(words"):
        Recommender.load(folder, "sft")


def test_the_package_shows_it():
    assert minionerec.Recommender is Recommender
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = minionerec.Recomender
