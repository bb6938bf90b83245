"""A run and an exported folder as the service loads them."""

from dataclasses import replace

import pytest
import torch

from minionerec.config import ServeConfig
from minionerec.errors import ArtifactError, DataError
from minionerec.recommend import export
from minionerec.recommend.filters import Filters
from minionerec.recommend.recommender import Recommender
from minionerec.serve.served import GoldenList, ServedModel


def golden_of(recommender, *histories, **filters):
    lists = recommender.recommend(histories, k=None, filters=Filters(**filters))
    scores = [{item.sid: item.score for item in each.items} for each in lists]
    return tuple(
        GoldenList(history, Filters(**filters), [*each], [*each.values()])
        for history, each in zip(histories, scores, strict=True)
    )


def test_a_model_that_makes_its_golden_lists_is_served_and_one_that_does_not_is_refused(recommender):
    golden = golden_of(recommender, ["i0", "i5"], ["i3"]) + golden_of(recommender, ["i3"], deny=("i1",))
    model = ServedModel(recommender, "run", "rl", "digest", golden)
    model.check()
    embedding = recommender.model.get_input_embeddings().weight
    before = embedding.detach().clone()
    try:
        with torch.no_grad():
            embedding.add_(0.3 * torch.randn_like(embedding))
        with pytest.raises(ArtifactError, match=r"run: the model of rl does not make its golden lists. Over 3 lists"):
            model.check()
    finally:
        with torch.no_grad():
            embedding.copy_(before)
    broken = replace(golden[0], scores=[float("nan")] * len(golden[0].scores))
    with pytest.raises(ArtifactError, match="scores differ by up to nan"):
        ServedModel(recommender, golden=(broken,)).check()


def test_a_full_batch_is_computed_once_before_the_first_client(recommender, monkeypatch):
    model, sizes = ServedModel(recommender, golden=golden_of(recommender, ["i0"], ["i3"])), []
    recommend = recommender.recommend
    monkeypatch.setattr(
        recommender, "recommend", lambda asked, *rest, **more: sizes.append(len(asked)) or recommend(asked, *rest, **more)
    )
    for batch, expected in ((2, [2, 1, 1]), (3, [2, 1, 3, 1])):  # golden lists, a request alone, a batch, an empty history
        sizes.clear()
        model.check()
        model.warm_up(ServeConfig(max_batch=batch))
        assert sizes == expected


def test_a_catalog_that_one_history_holds_whole_is_served(make):
    excluding = make(exclude_history=True)
    recommender = Recommender(excluding.model, excluding.prompts, config=excluding.config, max_history=50)
    ServedModel(recommender).warm_up(ServeConfig(max_batch=2))


def test_an_exported_folder_is_served_with_its_golden_lists_and_named_sets(recommender, tmp_path, monkeypatch):
    """The parts of an export that the service reads, of a model that was made in memory."""
    rows = list(export.golden_lines(recommender, 3))
    (tmp_path / "golden.jsonl").write_text("".join(f"{export.json.dumps(row)}\n" for row in rows))
    (tmp_path / "serving.json").write_text('{"stage": "sft"}')
    (tmp_path / "stock.txt").write_text("\ufeffi1\n\ni2\n")  # some programs begin a file of UTF-8 so
    monkeypatch.setattr("minionerec.recommend.recommender.Recommender.load", lambda *arguments: recommender)
    monkeypatch.setattr(
        "minionerec.serve.served.Manifest.load", lambda *arguments, **options: type("Manifest", (), {"digest": "abc"})
    )
    settings = ServeConfig(named=[f"in_stock={tmp_path / 'stock.txt'}"], max_batch=64)
    monkeypatch.setattr(recommender, "config", recommender.config)  # put back after the test
    model = ServedModel.load(tmp_path, settings)
    model.check()
    assert (model.stage, model.digest, len(model.golden)) == ("sft", "abc", 3)
    assert recommender.config.batch_size == 64
    assert recommender.items.named.pop("in_stock").sum() == 2
    (tmp_path / "golden.jsonl").write_text('{"history": ["i1"]}')
    with pytest.raises(ArtifactError, match=r"golden.jsonl: does not hold the lists that it should \('sids'\)"):
        ServedModel.load(tmp_path, ServeConfig())
    with pytest.raises(DataError, match=r"serve.named a=no file: cannot be read"):
        ServedModel.load(tmp_path, ServeConfig(named=["a=no file"]))
