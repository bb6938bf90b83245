"""`README.md` of an exported folder: the model card of its training stage, and how to recommend from the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minionerec.errors import ArtifactError

_FILES = {
    "config.json, model.safetensors, tokenizer.json, ...": "model and tokenizer; adapters are merged",
    "serving.json": "how the model is asked and searched: prompt, levels, beams, what scores add up over",
    "sids.json": "each item's semantic ID, and the id of each SID token",
    "trie.safetensors": "the valid semantic IDs as a trie",
    "catalog.parquet": "items: id, title, categories, popularity",
    "golden.jsonl": "prompts of held-out histories, with the lists that MiniOneRec made of them",
    "check.py": "checks that an engine makes the same lists",
    "manifest.json": "what the folder was made from; size and SHA-256 of each file",
}
_ENGINES = {
    "hf": ("transformers", "`python check.py --engine hf`"),
    "vllm": ("vLLM", "`python check.py --engine vllm`"),
    "sglang": ("SGLang", "`python check.py --engine sglang`"),
    "flashrec": ("FlashRec", "`python check.py --engine flashrec`"),
}
_PYTHON = """```python
from minionerec import Recommender

recommender = Recommender.load("path/to/this/folder")
[answer] = recommender.recommend([["ITEM_ID", "ITEM_ID"]], k=10)  # item ids, oldest first
for item in answer.items:
    print(item.place, item.item_id, item.title, item.score)
```"""
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM

import check  # the file in this folder

bundle = check.Bundle("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained(bundle.folder)
prompt = bundle.golden[0].prompt  # token ids
for sid, score in check.transformers_beams(model, bundle, prompt, num_beams=50):
    print(sid, score)
```"""


def write_export_card(path: Path, card: Path, serving: Mapping[str, Any], engine: str) -> None:
    """Write the card.

    Args:
        card: of the training stage.
        serving: what `serving.json` says.
        engine: what the folder was exported for.

    Raises:
        ArtifactError: the training stage has no card.
    """
    try:
        before, _, after = card.read_text(encoding="utf-8").partition("## Use\n")
    except OSError as error:
        raise ArtifactError(f"{card}: cannot be read ({error.strerror}). Run the stage again.") from None
    licence = after.partition("## Licence\n")[2]
    prompt = serving["prompt"]
    separated = f", with {prompt['separator']!r} between" if prompt["separator"] else ""
    over = "the legal next codes" if serving["normalise_over"] == "catalog" else "the whole vocabulary"
    sections = {
        "Recommend": f"With MiniOneRec, or as a service (`minionerec serve --run path/to/this/folder`):\n\n{_PYTHON}",
        "Recommend with transformers alone": (
            f"{_TRANSFORMERS}\n\nA prompt is\n\n```\n{prompt['text']}\n```\n\nwith the items in place of `{{history}}`, "
            f"oldest first, each written as `{prompt['item']}`{separated}. The newest {serving['max_history']} items count. "
            f"A score is the sum of log-probabilities over {over}."
        ),
        "Engines": _engines(serving["refused"], engine),
        "Files": _table(("file", "holds"), [(f"`{name}`", text) for name, text in _FILES.items()]),
        "Licence": licence.strip(),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    path.write_text(f"{before}{body}\n", encoding="utf-8", newline="\n")


def _engines(refused: Mapping[str, str], engine: str) -> str:
    rows = []
    for name, (title, command) in _ENGINES.items():
        what = f"refused: {refused[name]}" if name in refused else command
        rows.append((f"**{title}**" if name == engine else title, what))
    rows.append(("minionerec serve", "`python check.py --engine server --url http://127.0.0.1:8000`"))
    notes = (
        "transformers reproduces the golden lists. vLLM and SGLang have no constraint in their beam search: they search twice "
        "as wide, and what is no item is filtered out, so some places of a list are lost. `check.py` prints how many, compares "
        "order and scores with thresholds, and exits with status 1 below them. What it does with vLLM, SGLang and FlashRec "
        "follows their sources and has not been run there yet: run it before you rely on one of them."
    )
    return f"{_table(('engine', 'check'), rows)}\n\n{notes}"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {left} | {right} |" for left, right in rows)]
    return "\n".join(lines)
