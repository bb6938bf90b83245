"""A synthetic run on disk: every artefact the report reads, without training anything."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from minionerec.artifacts import Recipe
from minionerec.baselines.trivial import popularity, repeat_last
from minionerec.config import DEFAULT_TASKS, RECOMMENDING, BaselineConfig, Config, EvalConfig, SidConfig
from minionerec.config.run_file import recording
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.eval.evaluate import measure_predictions
from minionerec.eval.predictions import Prediction, as_predictions, write_predictions
from minionerec.prompts.record import prompts_section
from minionerec.sid.index import SidIndex
from minionerec.training.ranking import TIES

NASTY = '<script>alert("x")</script> & <b>bold</b>'
_FIRST = ("Silent", "Golden", "Last", "Midnight", "Broken", "Electric", "Hidden", "Crimson", "Distant", "Paper")
_SECOND = ("River", "Garden", "Letter", "Kingdom", "Station", "Mirror", "Harbour", "Winter", "Orchard", "Machine")


def dataset(users: int, items: int, rng: np.random.Generator) -> Dataset:
    titles = [f"{_FIRST[i % 10]} {_SECOND[i // 10 % 10]} ({1960 + i % 40})" for i in range(items)]
    titles[3] = NASTY
    ids = [str(i) for i in range(items)]
    catalog = pl.DataFrame({"item_id": ids, "title": titles, "text": titles}, schema=CATALOG_SCHEMA)
    popular = rng.permutation(1 / (1 + np.arange(items)))
    rows: dict[str, list[tuple[str, list[int], int, int, int]]] = {"train": [], "valid": [], "test": []}
    for user in range(users):
        length = int(rng.integers(3, 20))
        sequence = rng.choice(items, size=length, p=popular / popular.sum()).tolist()
        for position in range(1, length):
            split = "test" if position == length - 1 else "valid" if position == length - 2 else "train"
            rows[split].append((f"u{user}", sequence[max(0, position - 10) : position], sequence[position], 0, position))
    frames = {name: pl.DataFrame(values, schema=SPLIT_SCHEMA, orient="row") for name, values in rows.items()}
    return Dataset(catalog, **frames)


def model_predictions(
    data: Dataset, index: SidIndex, skill: float, rng: np.random.Generator, length: int = 50
) -> list[Prediction]:
    """Lists of `length` as a model of some skill would make them: the target floats up more often the higher `skill` is."""
    items = len(index.codes)
    made = []
    for example in data.test.iter_rows(named=True):
        target = index.codes[example["target"]]
        close = (index.codes == target).cumprod(axis=1).sum(axis=1)
        score = rng.gumbel(size=items) + skill * close
        ranked = np.argsort(-score, kind="stable")
        sids = list(dict.fromkeys(map(tuple, index.codes[ranked].tolist())))[:length]
        sizes = [len(index.items(sid)) for sid in sids]
        made.append(
            Prediction(
                user=example["user"],
                history=example["history"],
                target=example["target"],
                target_sid=target.tolist(),
                sids=[list(sid) for sid in sids],
                items=[item for sid in sids for item in index.items(sid)],
                scores=(-0.1 * np.arange(len(sids)) - 3).tolist(),
                exact=bool(rng.random() < 0.97),
                score_kind="log-probability",
                sizes=sizes if max(sizes) > 1 else None,
            )
        )
    return made


def _logs(rng: np.random.Generator) -> dict[str, list[dict[str, float]]]:
    sft: list[dict[str, float]] = []
    for step in range(10, 1001, 10):
        noise = float(rng.normal(0, 0.05))
        sft.append(
            {
                "step": step,
                "epoch": step / 300,
                "loss": 2 + 4 * math.exp(-step / 200) + noise,
                "learning_rate": 5e-4 * (1 + math.cos(math.pi * step / 1000)),
                "grad_norm": 1 + noise,
            }
        )
        if step % 100 == 0:
            sft.append({"step": step, "epoch": step / 300, "eval_loss": 2.2 + 4 * math.exp(-step / 180)})
    rl = [
        {
            "step": step,
            "epoch": step / 128,
            "reward": 0.1 + 0.001 * step + float(rng.normal(0, 0.03)),
            "kl": 0.0005 * step,
            "groups_with_signal": 0.3 + float(rng.normal(0, 0.05)),
            "first_codes": 4 - 0.01 * step,
            "entropy": 1.5 - 0.005 * step,
            **{f"entropy/level_{level}": 2.5 / level - 0.005 * step for level in (1, 2, 3)},
            "loss": float(rng.normal(0, 0.001)),
        }
        for step in range(1, 129)
    ]
    return {"sft": sft, "rl": rl}


def _sections(config: Config, name: str) -> dict[str, Any]:
    """What the manifest of an artefact says of its configuration."""
    stage, _, recommender = name.partition("/")
    sections = {"sft": ("sft", "model"), "baselines": ("baseline",)}
    made = config.section(*sections.get(stage, (stage,)))
    if stage == "baselines":
        made["baseline"] |= TIES
    if stage in ("sft", "rl"):
        made["prompts"] = prompts_section(config.prompts_for_training, DEFAULT_TASKS)
    if recommender in ("sft", "rl"):
        made["prompts"] = prompts_section(config.resolved_prompts, [RECOMMENDING])
    return made


def make_run(
    folder: Path,
    *,
    rl: bool = True,
    users: int = 60,
    items: int = 80,
    collide: bool | Literal["all"] = False,
    skill: float = 0.9,
    given: dict[str, Any] | None = None,
    baseline: BaselineConfig | None = None,
) -> Config:
    """Write the artefacts of a run into `folder` and return its configuration, of which sections may be `given`.

    Args:
        collide: every two items share a SID, or `all` items share one.
    """
    rng = np.random.default_rng(0)
    config = Config(name="demo", out=str(folder), sid=SidConfig(codebook_size=8), eval=EvalConfig(resamples=200))
    config = dataclasses.replace(config, **(given or {}))
    with recording(config, "data"):
        data = dataset(users, items, rng)
    codes = np.array([(i // 64, i // 8 % 8, i % 8) for i in rng.permutation(min(items, 512))], dtype=np.int32)
    if collide == "all":
        codes[:] = codes[0]
    elif collide:
        codes[1::2] = codes[: len(codes) // 2 * 2 : 2]
    index = SidIndex(codes, (8, 8, 8), data.digest)
    digests: dict[str, str] = {}

    def artifact(name: str, *inputs: str):
        known = {source: digests[source] for source in inputs}
        stage, made = name.partition("/")[0], _sections(config, name)
        return Recipe(stage, folder / name, made, known, config.seed).write()

    def finish(name: str) -> None:
        digests[name] = json.loads((folder / name / "manifest.json").read_text())["digest"]

    with artifact("data") as draft:
        data.save(draft.path)
        draft.metrics.update(users=users, items=items, interactions=len(data.train) + 3 * users, density=0.0631)
    finish("data")
    with artifact("sid", "data") as draft:
        index.save(draft.path)
        draft.metrics.update(
            items=items,
            moved=0.12,
            collision_rate_before=0.1,
            reconstruction_error=0.31,
            collision_rate=0.0,
            largest_group=1,
            perplexity=[7.1, 8.0],
        )
    finish("sid")
    logs = _logs(rng)
    skills = {"sft": skill, "rl": skill * 1.15} if rl else {"sft": skill}
    for stage in skills:
        with artifact(stage, "data", "sid", *(("sft",) if stage == "rl" else ())) as draft:
            lines = "".join(json.dumps(entry) + "\n" for entry in logs[stage])
            (draft.path / "log.jsonl").write_text(lines, encoding="utf-8")
            draft.metrics.update(parameters=1_900_000, steps=1000)
        finish(stage)
    lists = {
        "popularity": as_predictions(data.test, popularity(data, config.eval.num_beams), index),
        "repeat": as_predictions(data.test, repeat_last(data.test, config.eval.num_beams), index),
        **{
            stage: model_predictions(data, index, strength, np.random.default_rng(7), config.eval.num_beams)
            for stage, strength in skills.items()
        },
    }
    if baseline is not None:
        config = dataclasses.replace(config, baseline=baseline)
        with artifact(f"baselines/{baseline.model}", "data"):
            pass
        lists[baseline.model] = model_predictions(data, index, 0.5, np.random.default_rng(8), config.eval.num_beams)
    for name, predictions in lists.items():
        with artifact(f"eval/{name}", "data", "sid", *((name,) if name in skills else ())) as draft:
            write_predictions(draft.path / "predictions.jsonl", predictions)
            measure_predictions(draft.path, data, index, config).write(draft.path / "metrics.json")
            draft.metrics.update(users=len(predictions))
    return config
