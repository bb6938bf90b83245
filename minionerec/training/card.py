"""The model card: `README.md` next to a trained model's weights, in the format that model hubs read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from minionerec.config import Config, run_file
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.sources import SOURCES
from minionerec.sid.index import SidIndex

_TITLES = {"sft": "supervised fine-tuning", "rl": "GRPO with ranking rewards"}


def write_card(folder: Path, stage: str, config: Config, dataset: Dataset, index: SidIndex, metrics: Mapping[str, Any]) -> None:
    """Write the card of a stage's model. Equal runs write equal cards.

    Args:
        folder: the model's folder.
        stage: `sft` or `rl`.
        metrics: figures of the training, by name.
    """
    scratch = config.model.init == "from_scratch"
    base = "none: a small Qwen2, trained from scratch" if scratch else str(config.model.path)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": "other"}
    if not scratch and not Path(base).is_dir():
        head["base_model"] = base
    head["tags"] = ["minionerec", "generative-recommendation", "semantic-ids", stage]
    sections = config.section(*(("sft", "model") if stage == "sft" else ("rl",)))
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run_file.name_of(config)}: {_TITLES[stage]}",
        f"A causal language model that recommends items of one catalog by writing their semantic IDs (SIDs), such as "
        f"`{index.text(0)}`. Made by the stage `{stage}` of MiniOneRec.",
        "## Base model",
        f"{'The model of `sft/` in the same run; its base: ' if stage == 'rl' else ''}{base}",
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
        f"`minionerec eval` does with the run's `sid/` folder.\n\n{_LOAD}",
        "## Licence",
        _licence(config),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def _validated(metrics: Mapping[str, Any], config: Config, stage: str, dataset: Dataset) -> dict[str, str]:
    """How many examples the figures on valid are means of."""
    section = config.sft if stage == "sft" else config.rl
    if not any(name.startswith("best") and "valid" in name and value is not None for name, value in metrics.items()):
        return {}
    examples = min(section.valid_examples or len(dataset.valid), len(dataset.valid))
    return {"figures on valid": f"means over {examples:,} examples, of the step that they chose"}


_LOAD = """```python
from minionerec.model import checkpoint

model, tokenizer = checkpoint.load("path/to/this/folder")  # or transformers' AutoModelForCausalLM and AutoTokenizer
```"""


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_figure(value)} |" for name, value in values.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _licence(config: Config) -> str:
    notes = []
    source = SOURCES.get(config.data.source) or SOURCES.get(f"{config.data.source}/{config.data.category}")
    if source is not None:
        notes.append(f"Data: {source.terms}.")
    else:
        notes.append("Data: your own files. Their terms apply.")
    if config.model.init == "from_pretrained":
        notes.append(f"The weights derive from {config.model.path}: its licence applies to them.")
    notes.append("Read both before you pass the model on.")
    return " ".join(notes)
