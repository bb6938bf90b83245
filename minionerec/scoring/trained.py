"""Scores of the run's trained models: `<run>/scoring/yes-no-<name>/` of each `<run>/yes-no/<name>/` that can be asked."""

from pathlib import Path
from typing import Any

from minionerec.artifacts import CHECKPOINTS, Manifest, Recipe, require
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.distributed import distributed_state, is_main_process
from minionerec.model import checkpoint
from minionerec.prompts.pairs import PairPrompts
from minionerec.scoring.encoders import CausalEncoder
from minionerec.scoring.items import WORDS, Shown, index_of
from minionerec.scoring.matching import Matched, score_similarity, vectors_recipe, write_vectors
from minionerec.scoring.models import COMMAND, FOLDER, row_of
from minionerec.scoring.yes_no import Scorer, score_in_shards
from minionerec.training.scored_pairs import pairs_of_split, score_recipe, write_scores


def score_trained(config: Config, name: str) -> tuple[Manifest, bool]:
    """Score the pairs by one of the run's trained models; every process calls it and takes its share of the users.

    Args:
        name: see `models.trained_models`.

    Raises:
        ArtifactError: the model is damaged, or a process did not finish its share.
    """
    trained = require(config.folder / FOLDER / name, COMMAND)
    section = trained.config["yes_no"]

    def inputs() -> dict[str, str]:
        return {f"{FOLDER}/{name}": require(config.folder / FOLDER / name, COMMAND).digest}

    if section["scheme"] == "matching":
        recipe = vectors_recipe(config, row_of(name), {"trained": name}, inputs)
        write_vectors(config, recipe, lambda pairs: _matched(config, name, section, pairs))
        return score_similarity(config, row_of(name), "cosine", row_of(name), _label(trained, "trained to match"))
    recipe = score_recipe(config, row_of(name), inputs=inputs)
    return recipe.make(lambda: _score(config, trained, name, recipe), collective=True)


def _matched(config: Config, name: str, section: dict[str, Any], pairs: PairSet) -> Matched:
    model, tokenizer = checkpoint.load(config.folder / FOLDER / name / "model")
    shown = Shown.of(pairs, index_of(config, pairs, section["items"]), tokenizer)
    model = model.to(distributed_state().device).eval()
    return Matched(CausalEncoder(model, tokenizer, section["pooling"], config.score.row_tokens), WORDS, shown.items)


def _score(config: Config, trained: Manifest, name: str, recipe: Recipe) -> None:
    pairs = PairSet.load(config.folder / "pairs")
    rows = pairs_of_split(pairs, config)
    model, tokenizer = checkpoint.load(config.folder / FOLDER / name / "model")
    shown = Shown.of(pairs, index_of(config, pairs, trained.config["yes_no"]["items"]), tokenizer)
    prompts = PairPrompts(tokenizer, WORDS, shown.items, checkpoint.context_of(model), breakable=not shown.tokens)
    with recipe.write(resumable=True, collective=True) as draft:
        scorer = Scorer(model.to(distributed_state().device).eval(), prompts, config)
        scores, figures = score_in_shards(scorer, rows, draft.path / CHECKPOINTS)
        if is_main_process():
            write_scores(draft, rows, scores, label=_label(trained, "trained on pairs"), kind="model", scale="logit", **figures)


def _label(trained: Manifest, how: str) -> str:
    path = trained.config["model"]["path"]
    return f"{'from scratch' if path is None else Path(path).name}, {how}, items as {trained.config['yes_no']['items']}"
