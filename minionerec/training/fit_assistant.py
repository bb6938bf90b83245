"""Stage `d3`: how much a model weighs beside its assistant, chosen on the valid split.

Inputs: `data/`, `sid/`, the model of a training stage and the baseline that `eval.assistant` names. Output:
`d3/<stage>/weight.json` with the NDCG@10 of every weight that was tried. Each is tried by the beam search of the evaluation,
with its beams and with `eval.exclude_history`; of equal weights the largest is kept, the nearest to the model alone.

Bao et al., EMNLP 2024, arXiv:2406.14900, section 4.3, who do not say which weight they chose or from which.

Command: `minionerec d3 --config NAME --eval.assistant sasrec`
"""

import logging
from functools import partial
from pathlib import Path

from minionerec.artifacts import ITEM_STAGES, UNSEEDED, Manifest, Recipe, read_json, require, write_json
from minionerec.config import NAMING, RECOMMENDING, Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import baseline_digest
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.prompts.titles import check_whole
from minionerec.recommend.assistant import COMMAND, WEIGHT, BaselineAssistant
from minionerec.recommend.recommender import Recommender
from minionerec.recommend.titles import TitleRecommender
from minionerec.sid.index import SidIndex
from minionerec.training.early import check_assistant
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.holdout import check_valid_unseen

METRIC = "NDCG@10"
WEIGHTS = tuple(tenth / 10 for tenth in range(11))

log = logging.getLogger(__name__)


TITLES = "sft-titles"  # the SFT model, searched over titles


def fit_assistant(config: Config, asked: str) -> tuple[Manifest, bool]:
    """Choose the weight for a trained model, unless the finished artefact is current.

    Args:
        asked: `sft` or `rl`, or `sft-titles` for the SFT model over the titles of the catalog (`eval.title_trie`).

    Returns:
        the manifest, whose `metrics` have the weight and the NDCG@10 on SIDs, or on titles, of the valid examples with it, with
        the model alone and with the assistant alone; and whether it was made now.

    Raises:
        ArtifactError: an input is missing or was made from other data.
        ConfigError: no assistant is named, or one that has no vectors, or the model was trained with other prompts or on the
            valid split.
        DataError: the valid split is empty.
        LockedError: another process chooses this weight.
    """
    check_assistant(config)
    recipe = _recipe(config, asked)
    return recipe.make(lambda: _fit(config, asked, recipe), collective=True)


def _stage(asked: str) -> str:
    return "sft" if asked == TITLES else asked


def chosen_weight(config: Config, weights: str, inputs: dict[str, str]) -> tuple[float, str | None]:
    """The model's weight for an evaluation, and the digest of the artefact that it comes from; None if the user set it.

    Args:
        weights: the artefact's name, of `WEIGHTS` in recommend/variants.py.
        inputs: digests of data, SIDs, the model and the baseline, by name.

    Raises:
        ArtifactError: it was not chosen yet, or for another model or assistant.
    """
    if config.eval.assistant_weight is not None:
        return config.eval.assistant_weight, None
    folder = config.folder / weights
    command = f"{COMMAND} --eval.assistant {config.eval.assistant}"
    manifest = require(folder, command, made_from=inputs)
    if (of := manifest.config["eval"]["assistant"]) != config.eval.assistant:
        raise ArtifactError(f"{folder}: the weight was chosen for the assistant {of}. Choose it again: {command}")
    try:
        return float(read_json(folder / WEIGHT)["weight"]), manifest.digest
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / WEIGHT}: not a weight of this version ({error}). Run {COMMAND} again.") from None


def assistant_inputs(config: Config, data_digest: str) -> dict[str, str]:
    """The digest of the baseline that `eval.assistant` names.

    Raises:
        ArtifactError: the run has no such baseline, or it was trained on other data.
        ConfigError: none is named.
    """
    if (name := config.eval.assistant) is None:
        raise ConfigError("eval.assistant is null, so nothing helps the model. Name a baseline of the run, such as sasrec.")
    return {f"baselines/{name}": baseline_digest(config.folder, name, data_digest)}


def _inputs(config: Config, stage: str) -> dict[str, str]:
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    inputs[stage] = require(config.folder / stage, f"minionerec {stage}", made_from=inputs).digest
    return inputs | assistant_inputs(config, inputs["data"])


def _recipe(config: Config, asked: str) -> Recipe:
    stage = _stage(asked)
    inputs = _inputs(config, stage)
    model = Manifest.load(config.folder / stage)
    check_prompts(model.config, config.resolved_prompts, str(config.folder / stage))
    check_valid_unseen(model, "The weight beside an assistant is chosen on the valid split")
    fields = ("num_beams", "normalise_over", "exclude_history", "dtype", "assistant", "assistant_examples")
    sections = {
        "eval": {name: getattr(config.eval, name) for name in fields},
        "prompts": prompts_section(config.resolved_prompts, [NAMING if asked == TITLES else RECOMMENDING]),
    }
    if asked == TITLES:
        sections["titles"] = {name: getattr(config.eval, name) for name in ("length_penalty", "title_tokens")}
    return Recipe(
        stage=f"d3/{asked}",
        folder=config.folder / "d3" / asked,
        config=sections,
        inputs=inputs,
        seed=UNSEEDED,
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config, stage),
    )


def _fit(config: Config, asked: str, recipe: Recipe) -> None:
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    assistant = BaselineAssistant.load(config.folder, str(config.eval.assistant), dataset, "valid", 1.0)
    with recipe.write(collective=True) as draft:
        model, tokenizer = checkpoint.load(str(Path(config.folder) / _stage(asked) / "model"), config.eval.dtype)
        prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
        model = model.to(distributed_state().device)
        if asked == TITLES:
            check_whole(prompts, config.eval.title_tokens)
            recommender: Recommender = TitleRecommender(model, prompts, config.eval)
        else:
            recommender = Recommender(model, prompts, config=config.eval)
        measure = RankingEvaluator(recommender, config.eval, config.eval.assistant_examples, METRIC)
        tried = {}
        for weight in WEIGHTS:
            recommender.assist(assistant.weighing(weight))
            tried[weight] = measure()[METRIC]
        best = max(tried, key=lambda weight: (tried[weight], weight))
        if is_main_process():
            write_json(draft.path / WEIGHT, {"weight": best, METRIC: {str(weight): value for weight, value in tried.items()}})
        draft.metrics.update({"weight": best, METRIC: tried[best]})
        draft.metrics.update({"of the model alone": tried[1.0], "of the assistant alone": tried[0.0]})
