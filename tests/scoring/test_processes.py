"""Two processes with gloo train and score pairs as one does."""

import shutil

import numpy as np
import pytest

from minionerec.artifacts import read_json
from minionerec.cli import main
from minionerec.training.scored_pairs import read_scores
from tests.data.test_pairs import rated_csv
from tests.launch import forked
from tests.small import losses


@pytest.mark.parametrize(
    ("zero2", "kind"), [(None, "CPUs (DDP)"), pytest.param("sft/zero2.yaml", "DeepSpeed ZeRO-2", marks=pytest.mark.slow)]
)
def test_two_processes_give_the_losses_and_scores_of_one(tmp_path, zero2, kind):
    path, alone, other = rated_csv(tmp_path), tmp_path / "run", tmp_path / "two"
    options = ["--train", "--score.resamples", "60", "--score.shard_users", "3", "--pairs.valid_share", "0.3"]
    options += ["--yes_no.epochs", "2", "--yes_no.batch_size", "4", "--yes_no.micro_batch", "2", "--yes_no.warmup", "1"]
    assert main(["score", "--config", str(path), *options]) == 0
    for stage in ("data", "pairs", "sid"):
        shutil.copytree(alone / stage, other / stage)
    done = forked(2, "-m", "minionerec", "score", "--config", str(path), "--out", str(other), *options, zero2=zero2)
    assert done.stdout.count(f"yes-no: 2 processes on {kind}") == 1
    for ours, theirs in zip(losses(other / "yes-no" / "sid"), losses(alone / "yes-no" / "sid"), strict=True):
        for name in theirs.keys() & {"step", "loss", "eval_loss", "eval_AUC", "eval_GAUC", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    scores = [read_scores(folder / "scoring" / "yes-no-sid")[1]["score"] for folder in (alone, other)]
    np.testing.assert_allclose(*scores, atol=1e-3)
    boards = [read_json(folder / "scoring" / "leaderboard" / "leaderboard.json") for folder in (alone, other)]
    assert [entry["name"] for entry in boards[0]["entries"]] == [entry["name"] for entry in boards[1]["entries"]]


@pytest.mark.slow
def test_two_processes_make_the_vectors_of_one_and_train_on_them(tmp_path):
    path, alone, other = rated_csv(tmp_path), tmp_path / "run", tmp_path / "two"
    options = ["--train", "--yes_no.scheme", "matching", "--yes_no.items", "text", "--score.resamples", "60"]
    options += ["--yes_no.epochs", "2", "--yes_no.batch_size", "4", "--yes_no.micro_batch", "2", "--yes_no.warmup", "1"]
    options += ["--pairs.valid_share", "0.3", "--score.shard_users", "5", "--sid.encoder", "tfidf"]
    assert main(["score", "--config", str(path), *options]) == 0
    for stage in ("data", "pairs"):
        shutil.copytree(alone / stage, other / stage)
    forked(2, "-m", "minionerec", "score", "--config", str(path), "--out", str(other), *options)
    name = "matching-text"
    for ours, theirs in zip(losses(other / "yes-no" / name), losses(alone / "yes-no" / name), strict=True):
        for figure in theirs.keys() & {"step", "loss", "eval_loss", "eval_GAUC", "grad_norm"}:
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-3)
    scores = [read_scores(folder / "scoring" / f"yes-no-{name}")[1]["score"] for folder in (alone, other)]
    np.testing.assert_allclose(*scores, atol=1e-3)
