"""Stage `mixture`: how much of a model's lists comes from counts, text neighbours and a trained baseline, fitted on valid.

Inputs: `data/`, `sid/`, the model of a training stage and, with the component `sequential`, a baseline. Outputs:
`mixture/<stage>/weights.json` and, with the component `text`, the item vectors in `vectors.safetensors`. The weights maximise
the likelihood of the valid targets' SIDs: EM, with the model as one component, per kind of history (`recommend.cache.mixture`).
The model's part is one forward of each prompt and its target; nothing is searched. With `eval.exclude_history` all
probabilities are over the catalog without the history, and a target in it tells nothing. With `mixture.choose_by: NDCG@10` the
model's odds beside the components are then multiplied by the one of `ODDS` that ranks part of the valid split best, searched as
the evaluation does it; `odds.json` has what each reached.

Not in the paper. Interpolation with a cache: Grave, Joulin, Usunier, 2016, arXiv:1612.04426; weights by EM: Jelinek and Mercer,
1980.

Command: `minionerec mixture --config NAME --mixture.components '[popularity,markov]'`
"""

import logging
from functools import partial

import numpy as np
from safetensors.numpy import save_file

from minionerec.artifacts import ITEM_STAGES, UNSEEDED, Manifest, Recipe, require, write_json
from minionerec.config import RECOMMENDING, VECTOR_FIELDS, Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import stored_baseline
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import DataError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.recommend.cache import MODEL, Buckets, Mixture
from minionerec.recommend.cache.mixture import log_likelihood
from minionerec.recommend.cache.vectors import vectors_of_run
from minionerec.recommend.mixing import (
    VECTORS,
    WEIGHTS,
    component_columns,
    components_of,
    fitted,
    model_column,
)
from minionerec.recommend.recommender import Recommender
from minionerec.sid.encoder import depends_on_seed, vector_inputs, vector_origin
from minionerec.sid.index import SidIndex
from minionerec.statistics.sampling import evenly_spaced
from minionerec.training.early import check_components
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.holdout import check_valid_unseen

METRIC = "NDCG@10"
ODDS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
TRIED = "odds.json"  # in `mixture/<stage>`

log = logging.getLogger(__name__)


def fit_mixture(config: Config, stage: str) -> tuple[Manifest, bool]:
    """Fit the weights for a trained model, unless the finished artefact is current.

    Args:
        stage: `sft` or `rl`.

    Returns:
        the manifest, whose `metrics` have the mean weights and the log-likelihoods of the valid targets, in nats per example:
        under the mixture, and under the model alone; with `choose_by: NDCG@10` also what the model's odds were multiplied by,
        the NDCG@10 on SIDs with that and without; and whether it was made now.

    Raises:
        ArtifactError: an input is missing or was made from other data.
        ConfigError: no component is named, or the model was trained with other prompts or on the valid split.
        DataError: the valid split is empty, or no target has a probability.
        LockedError: another process fits these weights.
    """
    check_components(config)
    recipe = _recipe(config, stage)
    return recipe.make(lambda: _fit(config, stage, recipe), collective=config.mixture.searches)


def _recipe(config: Config, stage: str) -> Recipe:
    inputs = _inputs(config, stage)
    model = Manifest.load(config.folder / stage)
    check_prompts(model.config, config.resolved_prompts, str(config.folder / stage))
    check_valid_unseen(model, "The weights of a mixture are fitted on the valid split")
    read = ["exclude_history", "dtype"]
    deciding = {**config.key_fields("mixture")["mixture"], "choose_by": config.mixture.choose_by}
    if config.mixture.searches:
        read.append("num_beams")
        deciding["ranked_examples"] = config.mixture.ranked_examples
    sections = {
        **config.section("mixture"),
        "eval": {name: getattr(config.eval, name) for name in read},
        "prompts": prompts_section(config.resolved_prompts, [RECOMMENDING]),
    }
    seed = UNSEEDED
    if "text" in config.mixture.components:  # whose vectors are these
        section, seed_of_vectors = vector_origin(config)
        sections["sid"] = {name: getattr(section, name) for name in VECTOR_FIELDS}
        seed = seed_of_vectors if depends_on_seed(section) else UNSEEDED
    return Recipe(
        stage=f"mixture/{stage}",
        folder=config.folder / "mixture" / stage,
        config=sections,
        inputs=inputs,
        seed=seed,
        key_fields={**sections, "mixture": deciding},
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config, stage),
    )


def _inputs(config: Config, stage: str) -> dict[str, str]:
    """Digests of data, SIDs, the model and what the components are made from."""
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    inputs[stage] = require(config.folder / stage, f"minionerec {stage}", made_from=inputs).digest
    if "text" in config.mixture.components:
        inputs |= vector_inputs(vector_origin(config)[0])
    if (baseline := config.mixture.sequential) is not None:
        inputs[f"baselines/{baseline}"] = stored_baseline(config.folder, baseline, inputs["data"]).digest
    return inputs


def _fit(config: Config, stage: str, recipe: Recipe) -> None:
    dataset = Dataset.load(config.folder / "data")
    if not len(dataset.valid):
        raise DataError(
            f"{config.folder / 'data'}: the valid split is empty, and the weights of a mixture are fitted to it. Make it with "
            "data.split or data.parts, or set mixture.components []."
        )
    rows = evenly_spaced(len(dataset.valid), config.mixture.valid_examples or len(dataset.valid))
    histories, targets = (dataset.valid[name].gather(rows).to_list() for name in ("history", "target"))
    components = components_of(config, dataset)
    buckets = Buckets(next(iter(components.values())).interactions)
    with recipe.write(collective=config.mixture.searches) as draft:
        model, tokenizer = checkpoint.load(str(config.folder / stage / "model"), config.eval.dtype)
        index = SidIndex.load(config.folder / "sid", dataset)
        prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
        recommender = Recommender(model.to(distributed_state().device), prompts, config=config.eval)
        columns = np.column_stack(
            [
                model_column(recommender, histories, targets),
                component_columns(recommender, components, histories, targets),
            ]
        )
        settings = config.mixture
        cache = fitted(columns, buckets, components, histories, settings.per_bucket, settings.pseudo_counts)
        tried = _ranked(recommender, config, cache) if config.mixture.searches else {}
        best = _best(tried) if tried else 1.0
        cache = cache.with_odds(best)
        if is_main_process():
            cache.weights.save(draft.path / WEIGHTS)
            if "text" in components:
                save_file({"vectors": np.ascontiguousarray(vectors_of_run(config, dataset))}, draft.path / VECTORS)
            if tried:
                write_json(draft.path / TRIED, {METRIC: {str(times): value for times, value in tried.items()}})
        if tried:  # first: the summary of a stage shows the first figures
            draft.metrics.update({"odds": best, METRIC: tried[best], "of the likeliest weights": tried[1.0]})
        draft.metrics.update(_figures(columns, cache.weights.values, buckets.of(histories), cache.weights.names))


def _ranked(recommender: Recommender, config: Config, cache: Mixture) -> dict[float, float]:
    """The NDCG@10 of lists for each of `ODDS`."""
    measure = RankingEvaluator(recommender, config.eval, config.mixture.ranked_examples, METRIC)
    tried = {}
    for times in ODDS:
        recommender.mix(cache.with_odds(times))
        tried[times] = measure()[METRIC]
    recommender.mix(None)
    return tried


def _best(tried: dict[float, float]) -> float:
    """The odds that rank best; of equal ones the likeliest weights (1), else the nearest to the model.

    >>> _best({2.0: 0.3, 1.0: 0.3, 0.5: 0.2}), _best({2.0: 0.3, 1.0: 0.2, 0.5: 0.3})
    (1.0, 2.0)
    """
    return max(tried, key=lambda times: (tried[times], times == 1, times))


def _figures(columns: np.ndarray, weights: np.ndarray, buckets: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """The mean weights over the rows, and the log-likelihoods of the rows that any of the components allows."""
    reachable = columns.sum(axis=1) > 0
    columns, buckets = columns[reachable], buckets[reachable]
    alone = np.log(np.maximum(columns[:, names.index(MODEL)], np.finfo(float).tiny))
    means = weights[buckets].mean(axis=0)
    return {
        "examples": len(columns),
        "log-likelihood": float(log_likelihood(columns, buckets, weights).mean()),
        "of the model alone": float(alone.mean()),
        **{name: float(mean) for name, mean in zip(names, means, strict=True)},
        "unreachable": int((~reachable).sum()),
    }
