"""A check that an encoder's folder brings no code of its own: loading it then runs none, whatever library version loads it."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from minionerec.config.documents import parse_json
from minionerec.errors import ConfigError

_LARGEST = 10_000_000  # bytes of a configuration
_VOCABULARIES = ("tokenizer.json", "vocab.json")  # may be larger, and name no classes
# Keys whose value, or values, sentence-transformers imports by their dotted names, with what such names may begin with.
_IMPORTED = {
    "type": ("sentence_transformers.",),  # modules.json
    "types": ("sentence_transformers.",),  # of Router and Asym: name to class
    "activation_function": ("torch.nn.",),  # of Dense
    "activation_fn": ("torch.nn.",),
}


def refuse_foreign_code(folder: Path) -> None:
    """Refuse a model whose files name code to be imported from anywhere but sentence-transformers and torch.

    Raises:
        ConfigError: a file names such code or a folder outside the model, is not readable as JSON, or is too large for a
            configuration.
    """
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() and file.is_dir():
            raise ConfigError(f"sid.encoder: {file} is a link to a folder, whose files are not checked. Copy the folder there.")
        if file.suffix != ".json" or not file.is_file():
            continue
        if file.stat().st_size > _LARGEST:
            if file.name in _VOCABULARIES:
                continue
            raise ConfigError(
                f"sid.encoder: {file} has {file.stat().st_size:,} bytes, expected at most {_LARGEST:,} of a configuration. "
                "Fetch the model again."
            )
        try:
            values = parse_json(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:  # not UTF-8, not JSON, or beyond the limits
            raise ConfigError(f"sid.encoder: {file} is not readable as JSON ({error}). Fetch the model again.") from None
        for path in _module_folders(values, file.name):
            if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
                raise ConfigError(
                    f"sid.encoder: {file} names the folder {path}, which is not part of the model. Fetch it again."
                )
        for key, name in _imported_names(values, file.name == "modules.json"):
            raise ConfigError(
                f"sid.encoder: {file} names code of the model's own ({key} {name}). Foreign code is never run. Choose a model "
                "without code, or embed the texts yourself and pass --sid.vectors FILE.npy."
            )


def _module_folders(values: Any, name: str) -> list[str]:
    """The folders of modules that a file names: `path` in modules.json, the keys of `types` of Router and Asym."""
    if name == "modules.json" and isinstance(values, list):
        return [str(module.get("path", "")) for module in values if isinstance(module, dict)]
    types = values.get("types") if isinstance(values, dict) else None
    return list(types) if isinstance(types, dict) else []


def _imported_names(values: Any, is_module_list: bool) -> Iterator[tuple[str, str]]:
    """Each key with a name that would be imported, and must not be."""
    if isinstance(values, list):
        for value in values:
            yield from _imported_names(value, is_module_list)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if key == "auto_map" and value:  # transformers' way to classes in the folder
            yield key, str(value)
        elif key in _IMPORTED:
            # Elsewhere `type` says other things, such as a kind of normaliser; only dotted names are imported.
            names = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for name in names:
                if isinstance(name, str) and (is_module_list or "." in name) and not name.startswith(_IMPORTED[key]):
                    yield key, name
        else:
            yield from _imported_names(value, is_module_list)
