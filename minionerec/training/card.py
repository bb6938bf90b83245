"""The model card: `README.md` next to a trained model's weights, in the format that model hubs read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minionerec.artifacts import MANIFEST, read_json
from minionerec.config import Config, run_file
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.sources import SOURCES
from minionerec.model import pretrained
from minionerec.sid.index import SidIndex
from minionerec.training.holdout import holdout_section

_OBJECTIVES = {  # of RL
    "grpo": "GRPO",
    "exact": "the expected reward over the whole catalog",
    "listwise": "each target against the rest of its group",
    "sdpo": "S-DPO",
}


def write_card(folder: Path, stage: str, config: Config, dataset: Dataset, index: SidIndex, metrics: Mapping[str, Any]) -> None:
    """Write the card of a stage's model. Equal runs write equal cards.

    Args:
        folder: the model's folder.
        stage: `sft` or `rl`.
        metrics: figures of the training, by name.
    """
    base = _base(config, stage)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": "other"}
    if base.hub is not None:
        head["base_model"] = base.hub
    head["tags"] = ["minionerec", "generative-recommendation", "semantic-ids", stage]
    sections = config.section(*(("sft", "model") if stage == "sft" else ("rl",)))
    if stage == "sft":
        sections |= holdout_section(config)
    if stage == "sft" and base.is_local:
        sections["model"]["path"] = "a local path"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run_file.name_of(config)}: {_title(config, stage)}",
        f"A causal language model that recommends items of one catalog by writing their semantic IDs (SIDs), such as "
        f"`{index.text(0)}`. Made by the stage `{stage}` of MiniOneRec.",
        "## Base model",
        f"{'The model of `sft/` in the same run; its base: ' if stage == 'rl' else ''}{base.words}",
        "## Data and semantic IDs",
        _table(
            {
                "source": " ".join(filter(None, (config.data.source, config.data.category))),
                "items": len(dataset.catalog),
                "examples (train, valid, test)": ", ".join(f"{len(dataset.split(name)):,}" for name in SPLITS),
                "longest history": config.data.max_history,
                "semantic IDs": "the data's own" if config.sid.shipped else config.sid.method,
                "codes per level": " + ".join(map(str, index.codebook_sizes)),
                "items that share their SID": index.collisions(),
            }
        ),
        "## Training",
        _table({**metrics, **_validated(metrics, config, stage, dataset)}),
        "## Recipe",
        f"```yaml\n{yaml.safe_dump({'seed': config.seed, **sections}, sort_keys=False)}```",
        "## Use",
        "The tokenizer holds the SID tokens. `minionerec/prompts` words the prompts. Constrain the search to the catalog, as "
        f"`minionerec eval` does with the run's `sid/` folder.\n\n{_LOAD.format(_OWN if base.has_texts else _GENERAL)}",
        "## Licence",
        _licence(config, base),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def _title(config: Config, stage: str) -> str:
    """How a stage has trained its model, in words."""
    if stage == "sft":
        return "supervised fine-tuning"
    ranked = config.rl.objective == "grpo" and any(name.startswith("ranking") for name in config.rl.rewards)
    return _OBJECTIVES[config.rl.objective] + " with ranking rewards" * ranked


@dataclass(frozen=True)
class _Base:
    """What a card says of the model that SFT began with: nothing of where it lies on this machine.

    Attributes:
        words: what it is.
        licence: whose licence applies; None for a model from scratch.
        hub: its name on the hub; None if it has none.
        is_local: whether it was read from a path.
        has_texts: whether the trained model has item texts.
    """

    words: str
    licence: str | None = None
    hub: str | None = None
    is_local: bool = False
    has_texts: bool = False


def _base(config: Config, stage: str) -> _Base:
    """The base of a stage's model: for RL that of the run's SFT model, whatever this command says."""
    model, from_a_file = config.section("model")["model"], False
    if stage == "rl":
        sft = read_json(config.folder / "sft" / MANIFEST)
        model, from_a_file = sft["config"].get("model", model), "model" in sft["inputs"]
    path = str(model["path"])
    if model["init"] == "from_scratch":
        has_texts = bool(model.get("text_input") or model.get("text_output"))
        texts = ", with its items' text vectors" * has_texts
        return _Base(f"none: a small Qwen2, trained from scratch{texts}", has_texts=has_texts)
    if pretrained.is_published(path):
        published = pretrained.PUBLISHED[path]
        return _Base(f"{path}: {published.what}. {published.page}", f"{path} ({published.terms})")
    if from_a_file or Path(path).exists():
        return _Base("a local model, which is not published here", "a local model", is_local=True)
    return _Base(path, path, path)


def _validated(metrics: Mapping[str, Any], config: Config, stage: str, dataset: Dataset) -> dict[str, str]:
    """How many examples the figures on valid are means of."""
    most = config.sft.validated_examples if stage == "sft" else config.rl.valid_examples
    if not any(name.startswith("best") and "valid" in name and value is not None for name, value in metrics.items()):
        return {}
    examples = min(most or len(dataset.valid), len(dataset.valid))
    return {"figures on valid": f"means over {examples:,} examples, of the step that they chose"}


_LOAD = """```python
from minionerec.model import checkpoint

model, tokenizer = checkpoint.load("path/to/this/folder")  # {}
```"""
_GENERAL = "or transformers' AutoModelForCausalLM and AutoTokenizer"
_OWN = "transformers alone does not know the architecture"


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_figure(value)} |" for name, value in values.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _licence(config: Config, base: _Base) -> str:
    notes = []
    source = SOURCES.get(config.data.source) or SOURCES.get(f"{config.data.source}/{config.data.category}")
    if source is not None:
        notes.append(f"Data: {source.terms}.")
    else:
        notes.append("Data: your own files. Their terms apply.")
    if base.licence is not None:
        notes.append(f"The weights derive from {base.licence}: its licence applies to them.")
    notes.append("Read both before you pass the model on.")
    return " ".join(notes)
