"""`minionerec data list` and `minionerec data get NAME`: public datasets, without a configuration."""

import argparse
import difflib
from collections.abc import Sequence

from minionerec.artifacts import cache_folder
from minionerec.data.sources import SOURCES, fetch
from minionerec.errors import ConfigError


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of the two.

    Raises:
        ConfigError: no such dataset, or an option that the command does not have.
        DataError: it cannot be fetched; the message has the steps by hand.
    """
    parser = argparse.ArgumentParser(prog=f"minionerec {command}", description=_HELP[command], exit_on_error=False)
    name = parser.add_argument("name", nargs="?" if command == "data list" else None, help="a name that `data list` shows")
    if command == "data list":
        name.help = "show only names that begin like this"
    try:
        given, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"minionerec {command}: {error}.") from None
    except SystemExit as stop:  # --help, or a missing name
        if stop.code:
            raise ConfigError(f"minionerec {command} needs a name; minionerec data list shows them.") from None
        return 0
    if unknown:
        raise ConfigError(f"minionerec {command}: unknown argument {unknown[0]}.")
    (_list if command == "data list" else _get)(given.name)
    return 0


_HELP = {
    "data list": "The public datasets that can be fetched: name, content, terms, size where known.",
    "data get": "Fetch a public dataset into the cache ($MINIONEREC_CACHE), going on where an earlier attempt stopped.",
}


def _list(prefix: str | None) -> None:
    found = [source for name, source in SOURCES.items() if name.startswith(prefix or "")]
    if not found:
        raise ConfigError(f"no dataset begins with {prefix!r}.{_near(prefix or '')}")
    for source in found:
        sizes = [file.bytes for file in source.files]
        size = (
            f"{sum(size or 0 for size in sizes) / 1e6:.1f} MB{'' if all(sizes) else ' and more'}"
            if any(sizes)
            else "size unknown"
        )
        checked = sum(file.checksum is not None for file in source.files)
        print(f"{source.name}\n    {source.what}; {size}; checksums known of {checked} of {len(sizes)} files; {source.terms}")
        print(f"    {source.page}   {source.options}")


def _get(name: str) -> None:
    if name not in SOURCES:
        raise ConfigError(f"no dataset is called {name!r}; minionerec data list shows them.{_near(name)}")
    source = SOURCES[name]
    print(f"{source.name}: {source.what}. Terms: {source.terms}. {source.page}")
    path = fetch(name, cache_folder())
    print(f"{path}\nRead it with: minionerec data prepare {source.options}")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
