"""Trainings, validation and evaluation on a GPU: a run learns, resumes as if never stopped, and answers as on a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run
from minionerec.recommend.recommender import Recommender
from minionerec.training.checkpoints import MarkComplete
from tests import small

pytestmark = pytest.mark.cuda
STAGES = ("data", "sid", "sft", "rl", "eval")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = small.config(tmp_path_factory.mktemp("gpu"), sft={"epochs": 4, "best_metric": "NDCG@10"}, rl={"max_examples": 32})
    run(config, STAGES)
    return config


def test_it_learns(finished):
    rows = [row for row in small.losses(finished.folder / "sft") if "loss" in row]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(np.isfinite(row["loss"]) for row in small.losses(finished.folder / "rl") if "loss" in row)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_lists_of_the_evaluation_by_graphs_without_and_on_the_cpu(finished, stage):
    predictions = read_predictions(finished.folder / "eval" / stage / "predictions.jsonl")
    histories = [prediction.history_ids for prediction in predictions]
    graphs, launches, cpu = (Recommender.load(finished.folder, stage, device) for device in ("cuda", "cuda", "cpu"))
    assert graphs.graphs is not None and cpu.graphs is None
    launches.graphs = None
    lists = [one.recommend(histories, k=None) for one in (graphs, launches, cpu)]
    assert graphs.graphs.replayed > 0
    for prediction, *rows in zip(predictions, *lists, strict=True):
        for row in rows:
            assert [item.index for item in row.items] == prediction.items
    for device in range(2):
        for row, other in zip(lists[device], lists[2], strict=True):
            scores = [[item.score for item in one.items] for one in (row, other)]
            np.testing.assert_allclose(*scores, atol=1e-3)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_an_interrupted_training_goes_on_as_if_never_stopped(finished, stage, tmp_path, monkeypatch):
    stages = STAGES[: STAGES.index(stage) + 1]
    made = replace(finished, out=str(tmp_path / "run"))
    run(made, stages[:-1])
    steps = max(row["step"] for row in small.losses(finished.folder / stage))
    on_step_end = MarkComplete.on_step_end

    def interrupt(self, args, state, control, **_):
        if state.global_step == steps - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(MarkComplete, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(made, (stage,))
    monkeypatch.setattr(MarkComplete, "on_step_end", on_step_end)
    assert list(made.folder.glob(f"{stage}.partial/checkpoints/checkpoint-*"))
    run(made, (stage,))
    whole, parted = ([row for row in small.losses(one.folder / stage) if "loss" in row] for one in (finished, made))
    assert [row["step"] for row in whole] == [row["step"] for row in parted]
    # Sums of a GPU may come in another order each time.
    np.testing.assert_allclose([row["loss"] for row in parted], [row["loss"] for row in whole], rtol=1e-2, atol=1e-3)


def test_bfloat16(finished, tmp_path):
    fields = {"bf16": True}
    made = replace(
        finished,
        out=str(tmp_path / "run"),
        sft=replace(finished.sft, **fields),
        rl=replace(finished.rl, **fields),
        eval=replace(finished.eval, dtype="bfloat16"),
    )
    run(made, STAGES)
    whole, rounded = ([row for row in small.losses(one.folder / "sft") if "eval_loss" in row] for one in (finished, made))
    assert min(row["eval_loss"] for row in rounded) < 1.1 * min(row["eval_loss"] for row in whole)
    model = Recommender.load(made.folder).model
    assert model.dtype == torch.bfloat16
