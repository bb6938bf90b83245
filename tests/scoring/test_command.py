"""`minionerec score` as a user meets it."""

import re

import yaml

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.scoring.controls import CONTROLS
from tests.data.test_pairs import rated_csv


def test_the_command_makes_data_pairs_and_the_table(tmp_path, capsys):
    path = rated_csv(tmp_path)
    arguments = ["score", "--config", str(path), "--score.resamples", "60"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(control.label in printed for control in CONTROLS.values()) and "GAUC minus" in printed
    assert re.search(r"scoring/leaderboard .*entries 5", printed) and Manifest.load(
        tmp_path / "run" / "scoring" / "leaderboard"
    )
    assert main([*arguments, "--merge", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("up to date") == 8
    board = tmp_path / "run" / "scoring" / "leaderboard" / "leaderboard.json"
    for spoilt in (board, board.with_name("manifest.json")):
        whole, content = board.read_bytes(), spoilt.read_bytes()
        spoilt.write_bytes(content[: len(content) // 2])
        assert main(arguments) == 0 and board.read_bytes() == whole and Manifest.load(board.parent)


def test_a_run_to_merge_that_has_no_scores_is_refused_before_anything_is_made(tmp_path, capsys):
    path = rated_csv(tmp_path)
    assert main(["score", "--config", str(path), "--merge", str(tmp_path / "none")]) == 2
    assert "Make it first: minionerec score" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_run_to_merge_of_other_pairs_or_settings_is_refused_before_anything_is_scored(tmp_path, capsys):
    path = rated_csv(tmp_path)
    scored = str(tmp_path / "run")
    assert main(["score", "--config", str(path), "--score.resamples", "60"]) == 0
    other = ["score", "--config", str(path), "--out", str(tmp_path / "other"), "--merge", scored]
    assert main([*other, "--score.resamples", "70"]) == 2
    assert "leaderboard has other settings than this run's" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()
    assert main([*other, "--score.resamples", "60", "--pairs.valid_share", "0.5"]) == 2
    assert "leaderboard has other pairs than this run's" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "other/pairs").is_dir() and not (tmp_path / "other/scoring").exists()


def test_settings_of_a_training_without_one_are_refused(tmp_path, capsys):
    path = rated_csv(tmp_path)
    assert main(["score", "--config", str(path), "--yes_no.epochs", "2"]) == 2
    assert "--yes_no.epochs has an effect with --train only" in " ".join(capsys.readouterr().err.split())
    assert main(["score", "--config", str(path), "--yes_no.epochs", "2", "--print_config"]) == 0  # such a file may train later
    assert yaml.safe_load(capsys.readouterr().out)["yes_no"]["epochs"] == 2
    assert not (tmp_path / "run").exists()
