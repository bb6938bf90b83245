"""The table of SFT variants at a tiny size: what it computes, what it refuses, and that it resumes."""

import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import read_json
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import item_ranks
from minionerec.statistics.ranking import gains, hits
from tests.benchmarks.test_rl_table import lists
from tests.small import leave_one_out, write_config


@pytest.fixture
def quality(script):
    return script("quality")


def test_a_difference_is_a_mean_over_users_and_seeds_on_the_rows_asked_for(quality):
    base, variant = [[0, 3, 12, 7] * 20, [1, 3, 12, 7] * 20], [[0, 0, 12, 12] * 20, [1, 3, 2, 7] * 20]
    first = lists(base[0])
    rows = np.arange(80) % 4 != 1
    values = [quality.values_by_seed([lists(ranks) for ranks in seeds], first, quality.CUTOFFS) for seeds in (base, variant)]
    found = quality.summary(*values, rows, None)
    for name, metric in (("NDCG@10", gains), ("HR@10", hits)):
        means = [[metric(np.array(ranks)[rows], 10).mean() for ranks in seeds] for seeds in (base, variant)]
        assert found[name]["seeds"] == pytest.approx(means[1])
        assert found[name]["change"]["value"] == pytest.approx(np.mean(means[1]) - np.mean(means[0]))


def test_the_duplicates_bought_most(quality):
    dataset = leave_one_out({"a": [0, 1, 2, 3, 4, 1], "b": [0, 1, 2, 0, 0, 1]}, 6, 5)  # training: 0 1 2 3, 0 1 2 0
    titled = dataset.catalog.with_columns(title=pl.Series(["x", "lamp", "x", "y", "lamp", "z"]))
    assert quality.most_bought_duplicates(type(dataset)(titled, dataset.train, dataset.valid, dataset.test)) == [0, 2]
    assert quality.most_bought_duplicates(dataset) == []


def test_rivals_are_held_against_every_variant_by_part_of_the_rows(quality, monkeypatch):
    dataset = leave_one_out({"a": [0, 1, 2, 3, 4, 1], "b": [0, 1, 2, 0, 0, 1]}, 6, 5)  # training: 0 1 2 3, 0 1 2 0
    first, other = lists([0, 3, 12, 7] * 5), lists([1, 3, 2, 7] * 5)
    by_name = {"ours": [first], "lazy": [other]}
    monkeypatch.setattr(quality, "read_lists", lambda folder, split, seeds, name: by_name[folder.name])
    arguments = Namespace(out=Path(), split="test", seeds=1)
    found = quality.results(arguments, ["ours", "lazy"], dataset, {"rival": [other, other]}, "sft")
    assert found["rows"]["all"] == 20
    assert found["minus rivals"]["lazy"]["rival"]["all"]["NDCG@10"]["change"]["value"] == 0
    expected = gains(np.array([0, 3, 12, 7] * 5), 10).mean() - gains(np.array([1, 3, 2, 7] * 5), 10).mean()
    assert found["minus rivals"]["ours"]["rival"]["all"]["NDCG@10"]["change"]["value"] == pytest.approx(expected)
    assert found["rivals"]["rival"]["all"]["HR@10"]["seeds"] == pytest.approx([1.0, 1.0])


def test_parts_of_rows(quality):
    dataset = leave_one_out({"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 0, 0, 1]}, 6, 5)  # training: 0 1 2 3, 0 1 2 0
    titled = dataset.catalog.with_columns(title=pl.Series(["x", "lamp", "x", "y", "lamp", "z"]))
    dataset = type(dataset)(titled, dataset.train, dataset.valid, dataset.test)
    duplicates, parts = quality.parts_of_rows(lists([0, 0, 0], targets=[0, 5, 1]), dataset)
    assert duplicates == [0, 2]
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "all": [True, True, True],
        "without": [False, True, True],
        "cold": [False, True, False],
    }


def test_every_variant_is_a_configuration(quality, tmp_path):
    arguments = Namespace(config="industrial-tiny")
    for name, text in quality.VARIANTS.items():
        made = quality.configuration(arguments, tmp_path, 3, [*shlex.split(quality.BASE), *shlex.split(text)])
        assert (made.folder, made.seed, made.sft.epochs) == (tmp_path, 3, 12), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "nonsense"], "'nonsense' is no variant"),
        (["--add", "base=--sft.epochs 1"], "the name new"),
        (["--variants", "mine", "--add", "mine=--sft.dropuot 0"], "variant mine: .*unknown field sft.dropuot"),
        (["--variants", "base", "--sft.dropout", "2"], r"variant base: sft.dropout is 2"),
        (["--rivals", "markov"], "--rivals 'markov': expected NAME=FOLDER"),
        (["--rivals", "markov=nowhere"], "--rivals: nowhere/predictions.jsonl: not found"),
    ],
)
def test_what_is_refused_before_anything_is_made(quality, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        quality.main(["--config", "industrial-tiny", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_and_again(quality, tmp_path, capfd):
    path = write_config(tmp_path)
    command = ["--config", str(path), "--out", str(tmp_path / "out"), "--seeds", "2", "--variants", "base", "same", "lazy"]
    command += ["--add", "same=--sft.patience 3", "--add", "lazy=--sft.learning_rate 1e-12", "--eval.num_beams", "10"]
    command += ["--sft.epochs", "4", "--sft.evaluations", "2", "--sft.batch_size", "8", "--sft.micro_batch", "8"]
    command += ["--sid.collisions", "nearest-free", "--model.hidden_size", "32"]
    quality.main(command)
    assert "| lazy | all |" in capfd.readouterr().out
    stored = read_json(tmp_path / "out/valid.json")
    alone, mixed = stored["sft"]["variants"], stored["sft-mixture"]["variants"]
    assert alone["same"]["all"]["NDCG@10"]["change"]["value"] == 0
    assert mixed["lazy"]["all"]["HR@10"]["seeds"][0] > alone["lazy"]["all"]["HR@10"]["seeds"][0]
    assert alone["lazy"]["all"]["HR@10"]["change"]["value"] < 0
    assert len(list((tmp_path / "out").glob("items-*"))) == 1
    ranked = tmp_path / "out/base/seed-2/valid/eval/sft/predictions.jsonl"
    values = gains(item_ranks(RankedLists.read(ranked))[0], 10)
    assert alone["base"]["all"]["NDCG@10"]["seeds"][1] == pytest.approx(values.mean())
    made = sorted((tmp_path / "out").glob("*/seed-*/**/manifest.json"))
    times = [file.stat().st_mtime_ns for file in made]
    quality.main(command)
    assert [file.stat().st_mtime_ns for file in made] == times
    quality.main([*command, "--test"])
    assert [file.stat().st_mtime_ns for file in made] == times and (tmp_path / "out/test.json").is_file()
