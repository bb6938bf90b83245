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


def test_two_processes_give_the_losses_and_scores_of_one(tmp_path):
    path, alone, other = rated_csv(tmp_path), tmp_path / "run", tmp_path / "two"
    options = ["--train", "--score.resamples", "60", "--score.shard_users", "3", "--pairs.valid_share", "0.3"]
    options += ["--yes_no.epochs", "2", "--yes_no.batch_size", "4", "--yes_no.micro_batch", "2", "--yes_no.warmup", "1"]
    assert main(["score", "--config", str(path), *options]) == 0
    for stage in ("data", "pairs", "sid"):
        shutil.copytree(alone / stage, other / stage)
    done = forked(2, "-m", "minionerec", "score", "--config", str(path), "--out", str(other), *options)
    assert done.stdout.count("yes-no: 2 processes on CPUs (DDP)") == 1
    for ours, theirs in zip(losses(other / "yes-no"), losses(alone / "yes-no"), strict=True):
        for name in theirs.keys() & {"step", "loss", "eval_loss", "eval_AUC", "eval_GAUC", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    scores = [read_scores(folder / "scoring" / "yes-no")[1]["score"] for folder in (alone, other)]
    np.testing.assert_allclose(*scores, atol=1e-3)
    boards = [read_json(folder / "scoring" / "leaderboard" / "leaderboard.json") for folder in (alone, other)]
    assert [entry["name"] for entry in boards[0]["entries"]] == [entry["name"] for entry in boards[1]["entries"]]
