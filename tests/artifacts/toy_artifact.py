"""An artefact of one small file, written as every stage writes its own."""

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from minionerec.artifacts import CHECKPOINTS, Draft, Manifest, Recipe


def recipe(folder: Path, settings: str, **changes: Any) -> Recipe:
    made = Recipe("toy", folder, {"levels": 3, "settings": settings}, {"data": "d"}, seed=1, replace=True)
    return dataclasses.replace(made, **changes)


def is_current(folder: Path, settings: str) -> bool:
    return recipe(folder, settings).finished() is not None


def writing(folder: Path, settings: str, **how: Any) -> AbstractContextManager[Draft]:
    return recipe(folder, settings).write(**how)


def write(folder: Path, settings: str, text: str | None = None, **more: Any) -> Manifest:
    with writing(folder, settings, **more) as draft:
        (draft.path / "deep").mkdir(exist_ok=True)
        (draft.path / "deep" / "a.txt").write_text(text or settings)
        if more.get("resumable"):
            (draft.path / CHECKPOINTS).mkdir(exist_ok=True)
            (draft.path / CHECKPOINTS / "step.txt").write_text("5")
        draft.metrics["items"] = 5
    return Manifest.load(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
