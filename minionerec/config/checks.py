"""Checks of single values that all sections share, so that equal mistakes have equal messages.

A numeric field states its bounds where it stands, by `bounded` or `bounded_list`, and a field that holds a path is made by
`path`. `check_fields` then checks every field of a section: numbers by their bounds, texts by what files and folders can be
called. `--help` shows the bounds, `fields.field_bounds` is the table of all.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from minionerec.errors import ConfigError

MOST_CHARACTERS = 4000  # of a text; Linux allows 4,095 bytes in a path
_MOST_BYTES = 255  # of one part of a path, on all common file systems
_LONGEST = 60  # characters of a value in a message


class Bounds(NamedTuple):
    """The values that a number may have.

    >>> Bounds(1, 5000).words, Bounds(0, 1, above=True).words, Bounds(0, 1, below=True).words
    ('from 1 to 5,000', 'above 0 and at most 1', 'from 0 to below 1')

    Attributes:
        low, high: the smallest and the largest value.
        above, below: whether `low`, or `high`, itself is left out.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def allow(self, value: float) -> bool:
        """Whether a value lies within; NaN, which YAML can write, does not."""
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    @property
    def words(self) -> str:
        """The bounds for display."""
        low, high = _short(self.low), _short(self.high)
        if self.above:
            return f"above {low} and {'below' if self.below else 'at most'} {high}"
        return f"from {low} to {'below ' if self.below else ''}{high}"

    def check(self, name: str, value: float, instead: Sequence[str] = ()) -> None:
        """Refuse a value outside.

        Args:
            instead: words that may stand for a number, such as `null`.

        Raises:
            ConfigError: the message names the field, the value, and what is allowed.
        """
        if not self.allow(value):
            raise ConfigError(f"{name} is {cut(value)}; it must be {', or '.join([self.words, *instead])}.")


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def cut(value: object) -> str:
    """A value for a message: its beginning, if it is long."""
    try:
        text = str(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def bounded(default: float | str | None, low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    """A dataclass field for a number and its bounds; see `Bounds`. None and `auto`, if the field takes them, need no bounds."""
    return dataclasses.field(default=default, metadata={"bounds": Bounds(low, high, above, below)})


def bounded_list(default: Collection[Any] | None, low: float, high: float, most: int = 100) -> Any:
    """A dataclass field for a list of numbers, or for names with a number each: bounds of each number, and how many at most."""
    metadata = {"bounds": Bounds(low, high), "most": most}
    if default is None:
        return dataclasses.field(default=None, metadata=metadata)
    copy = dict if isinstance(default, Mapping) else list
    return dataclasses.field(default_factory=lambda: copy(default), metadata=metadata)


def path(default: str | None = None) -> Any:
    """A dataclass field for a path, or for a name that may stand in its place; a leading `~` means the home folder."""
    return dataclasses.field(default=default, metadata={"path": True})


def check_fields(section: str, values: Any) -> None:
    """Check every field of a section; a path that begins with `~` is replaced by the path that it means.

    Args:
        section: the section's name; empty for fields such as `seed`, which are in no section.
        values: the section, a dataclass.

    Raises:
        ConfigError: a number is out of its bounds, or a text cannot be written; the message names the field.
    """
    for field in dataclasses.fields(values):
        name, value = f"{section}.{field.name}" if section else field.name, getattr(values, field.name)
        if field.metadata.get("path") and value is not None:
            setattr(values, field.name, value := checked_path(name, value))
        if (bounds := field.metadata.get("bounds")) is not None and not (value is None or isinstance(value, str)):  # auto
            for entry, number in _numbers(name, value, field.metadata.get("most", 1)):
                bounds.check(entry, number, _words(field.type) if entry == name else ())
        for text in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            if isinstance(text, str):
                check_text(name, text)
        if isinstance(value, list):
            _check_unique(name, value)


def _words(kind: Any) -> list[str]:
    """The words that a field takes in place of a number: those of a `Literal`, and `null` for None."""
    words = [word for part in get_args(kind) if get_origin(part) is Literal for word in get_args(part)]
    return [*words, *(["null"] if NoneType in get_args(kind) else [])]


def _numbers(name: str, value: Any, most: int) -> Iterator[tuple[str, float]]:
    """The numbers of a field, each with its name."""
    if not isinstance(value, list | dict):
        yield name, value
        return
    if len(value) > most:
        raise ConfigError(f"{name} has {len(value):,} entries; {most:,} at most.")
    entries = ((f"{name}.{key}", number) for key, number in value.items()) if isinstance(value, dict) else enumerate(value)
    for key, number in entries:
        yield (f"{name}[{key}]" if isinstance(key, int) else key), number


def _check_unique(name: str, values: list[Any]) -> None:
    twice = [value for number, value in enumerate(values) if isinstance(value, str) and value in values[:number]]
    if twice:
        raise ConfigError(f"{name} names {cut(twice[0])} twice; name it once.")


def check_text(name: str, text: str, when_long: str = "") -> None:
    """Refuse a text that cannot be written into files: control characters, halves of a character, or thousands of characters.

    Args:
        when_long: what to do about the last, as a sentence.

    Raises:
        ConfigError: the message names the field and the first such character.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(text):,} characters; {MOST_CHARACTERS:,} at most. {when_long}".rstrip())
    for position, character in enumerate("" if text.isprintable() else text):
        if unicodedata.category(character) in ("Cc", "Cs"):
            kind = "is not valid UTF-8" if unicodedata.category(character) == "Cs" else "is a control character"
            raise ConfigError(
                f"{name}: character {position + 1} of {cut(ascii(text))} {kind}; expected letters, digits, signs and spaces."
            )


def checked_path(name: str, text: str) -> str:
    """The path that a text means: with the home folder in place of a leading `~`, otherwise as it is.

    Raises:
        ConfigError: it cannot be a path on this machine; the message names the field and says why.
    """
    check_text(name, text)
    if not text:
        raise ConfigError(f"{name} is empty; expected a path, or leave it out.")
    long = [part for part in text.split("/") if len(part.encode()) > _MOST_BYTES]
    if long:
        raise ConfigError(
            f"{name}: {cut(long[0])} is one part of a path; file systems allow {_MOST_BYTES} bytes. Choose a shorter name."
        )
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no HOME and no entry in the list of users, or an unknown user
        user = text.split("/")[0]
        raise ConfigError(
            f"{name} is {cut(text)}, but this machine knows no home folder {user}. Write the whole path."
        ) from None


def exists(text: str) -> bool:
    """Whether a word that a user typed is the path of something; no word is too long or too strange to ask."""
    try:
        return Path(text).exists()
    except OSError:
        return False


def for_display(name: str) -> str:
    r"""A file's name for display: bytes that are not UTF-8 are spelled out.

    >>> for_display("caf\udce9.csv")
    'caf\\udce9.csv'
    """
    return name.encode(errors="backslashreplace").decode()


def check_output_file(name: str, file: Path) -> None:
    """Refuse to write over what is no regular file: a write by way of a new file would replace a device by a file.

    Raises:
        ConfigError: the path exists and is a device, a folder, a pipe or another thing that is no file.
    """
    try:
        special = file.exists() and not file.is_file()
    except OSError as error:
        raise ConfigError(f"{name} {file}: cannot be written ({error.strerror}). Choose another file.") from None
    if special:
        kind = "a folder" if file.is_dir() else "a device or pipe, no regular file"
        raise ConfigError(f"{name} {file} is {kind}; expected a file, or the name of a new one.")


def check_name(field: str, name: str) -> None:
    """Check a text that names folders and files, such as a run's name: it must be one part of a path.

    Raises:
        ConfigError: it is empty, has a slash or an invisible character, is too long for a file's name, or leads elsewhere.
    """
    if not name.strip():
        raise ConfigError(f"{field} is empty; it names files and folders.")
    check_text(field, name)
    if name.strip(".") == "" or name != name.strip() or set("/\\") & set(name) or name.startswith("~"):
        advice = " To choose where the run lies, use --out DIR." if field == "name" else ""
        raise ConfigError(
            f"{field} is {cut(repr(name))}; it names files and folders, so it must have no / and no \\, not begin with ~, not "
            f"begin or end with a space, and not be made of dots.{advice}"
        )
    if hidden := [character for character in name if not character.isprintable()]:
        raise ConfigError(
            f"{field} holds {hidden[0]!r}, which is invisible or turns the direction of what follows; it names files and "
            "folders, so use characters that can be seen."
        )
    if len(name.encode()) > 200:  # files add their endings to it
        raise ConfigError(f"{field} is {cut(name)}; it names files and folders, so it may have 200 bytes at most.")


def check_shares(section: str, shares: Mapping[Any, float], tasks: Collection[str]) -> None:
    """Check that `task_shares` names tasks of the section, each with a share.

    Raises:
        ConfigError: the section has no such task, or a share is out of range.
    """
    for task, share in shares.items():
        if task not in tasks:
            raise ConfigError(f"{section}.task_shares names {task}, which is not among {section}.tasks: {', '.join(tasks)}.")
        if not 0 < share <= 1:
            raise ConfigError(f"{section}.task_shares.{task} is {cut(share)}; it is a share above 0 and at most 1.")


def check_metric(name: str, metric: str, metrics: Collection[str]) -> None:
    """Check the name of a metric that chooses the best model.

    Raises:
        ConfigError: there is no such metric.
    """
    if metric not in metrics:
        raise ConfigError(f"{name} is {cut(repr(metric))}; it must be one of {', '.join(metrics)}.")


def finite(value: float) -> bool:
    """Whether a number, perhaps a whole one of many digits, fits a float."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
