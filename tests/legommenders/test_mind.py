"""MIND's own files: `minionerec lego` reads categories, titles and abstracts, and learns from what was shown."""

import numpy as np

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.config import LegoConfig
from minionerec.data.pairs import PairSet
from minionerec.legommenders.catalog_fields import item_fields

TOPICS = ("sports", "finance", "travel")
NEWS = 30


def write_mind(folder, users=60):
    """News of three topics, and people who click on those of one."""
    rng = np.random.default_rng(0)
    topic = np.arange(NEWS) % len(TOPICS)
    news = [
        f"N{n}\t{TOPICS[topic[n]]}\t{TOPICS[topic[n]]} part {n % 2}\tHeadline {n}\tAbout {n % 5}\thttps://x\t[]\t[]"
        for n in range(NEWS)
    ]
    behaviors = []
    for user in range(users):
        liked = user % len(TOPICS)
        history = rng.choice(np.flatnonzero(topic == liked), 4, replace=False)
        shown = rng.choice(np.setdiff1d(np.arange(NEWS), history), 8, replace=False)
        impressions = " ".join(f"N{n}-{int(topic[n] == liked)}" for n in shown)
        behaviors.append(f"{user}\tU{user}\t11/11/2019 9:05:58 AM\t{' '.join(f'N{n}' for n in history)}\t{impressions}")
    folder.mkdir()
    (folder / "news.tsv").write_text("\n".join(news) + "\n")
    (folder / "behaviors.tsv").write_text("\n".join(behaviors) + "\n")
    return folder


def test_the_command_learns_from_what_minds_readers_clicked(tmp_path, capsys):
    run = tmp_path / "run"
    source = ["--pairs.source", "mind", "--pairs.path", str(write_mind(tmp_path / "mind")), "--pairs.test_share", "0.4"]
    recipe = ["--lego.task", "pairs", "--lego.recipe", "naml", "--lego.width", "16", "--lego.learning_rate", "1e-2"]
    options = [*recipe, "--lego.epochs", "6", "--sid.encoder", "tfidf", "--score.resamples", "50"]
    assert main(["lego", "--out", str(run), *source, *options]) == 0
    assert "naml (cnn/additive/dot, matching)" in capsys.readouterr().out
    assert Manifest.load(run / "scoring/lego-naml").metrics["AUC"] > 0.9
    catalog = PairSet.load(run / "pairs").catalog
    fields = item_fields(catalog, LegoConfig(), np.ones(NEWS, dtype=bool), "MIND")
    assert list(fields.texts) == ["title", "description"] and fields.values == {"categories": 1 + 3 + 6}
