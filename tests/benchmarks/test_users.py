"""The benchmark of lists for many users, with a recommender in memory in place of a process."""

import pytest

from minionerec.prompts.builder import Prompts
from minionerec.recommend.batch import Job, recommend_users
from minionerec.recommend.recommender import Recommender
from tests.recommend.conftest import SIZES
from tests.small import random_dataset, untrained_model


def test_it_counts_users_and_compares_a_killed_run(script, monkeypatch, tmp_path, capsys):
    users = script("users")
    dataset, index = random_dataset()
    model, tokenizer = untrained_model(dataset, index, SIZES)
    recommender = Recommender(model, Prompts(dataset, index, tokenizer))
    (tmp_path / "data").mkdir()
    dataset.catalog.write_parquet(tmp_path / "data/catalog.parquet")
    calls = []

    def recommend(run, file, out, k, kill_after=None):
        calls.append(kill_after)
        if kill_after is None:
            recommend_users(recommender, Job(file, k=k + broken * (len(calls) == 5)), out)
        return 2.0, 0.5

    monkeypatch.setattr(users, "recommend", recommend)
    for broken in (0, 1):
        calls.clear()
        arguments = ["--run", str(tmp_path), "--users", "5", "8", "--k", "3", "--longest", "4"]
        if broken:
            with pytest.raises(SystemExit, match="wrote other bytes"):
                users.main(arguments)
        else:
            users.main(arguments)
            assert capsys.readouterr().out.splitlines()[-1] == "| 8 | after 2 s | 2 | 4 | 0.5 |"
        assert calls == [None, 2, None, 2, None]
