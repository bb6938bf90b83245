"""The names of a mixture's components; which stages read them, and which the item vectors, as settings say.

`run.yaml` must keep what these stages read.
"""

from collections.abc import Mapping
from typing import Any, Literal

ComponentName = Literal["popularity", "markov", "skip", "item-knn", "text", "sequential"]
VECTOR_BASELINES = ("rpg", "liger")  # those of `CODED_BASELINES` that read item vectors
Values = Mapping[str, Any]  # of `Config.recorded`, or of an older `run.yaml`, which may lack fields


def mixes_in(values: Values, stage: str) -> bool:
    """Whether a training stage reads `mixture.components`: in its loss, or in the validations that rank lists.

    >>> mixes_in({"sft": {"mixture": {"weights": "em"}}}, "sft"), mixes_in({"mixture": {"validation": True}}, "rl")
    (True, False)
    """
    section = values.get(stage, {})
    if stage == "sft":
        through = section.get("mixture", {}).get("weights", "none") != "none"
        return bool(through or (_validates(values) and section.get("best_metric", "loss") != "loss"))
    return stage == "rl" and _validates(values) and bool(section.get("evaluations", 0))


def _validates(values: Values) -> bool:
    return bool(values.get("mixture", {}).get("validation", False))


def reads_vectors(values: Values, stage: str) -> bool:
    """Whether a stage reads item vectors that no artefact of the run holds.

    The floors `text` and `mixture`, and the baseline `mixture`, read them if the run has some, which a run with shipped
    semantic IDs has only as a file.
    """
    by_text = bool("text" in values.get("mixture", {}).get("components", ()))
    file = values.get("sid", {}).get("vectors") is not None
    model, baseline = values.get("model", {}), values.get("baseline", {})
    if stage == "baseline":
        chosen = baseline.get("components")
        of_mixture = file if chosen is None else "text" in chosen
        return baseline.get("model") in ("text", *VECTOR_BASELINES) or bool(baseline.get("model") == "mixture" and of_mixture)
    item_texts = stage == "sft" and bool(model.get("text_input") or model.get("text_output"))
    return {
        "sft": item_texts or (by_text and mixes_in(values, stage)),
        "rl": by_text and mixes_in(values, stage),
        "mixture": by_text,
        "eval": file,
    }.get(stage, False)
