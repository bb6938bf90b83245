"""Stop the writing of an artefact at every line: python -m tests.artifacts.stopped.

After each stop, what bears the final name is whole, and the next writing ends with the new content and nothing else.
"""

import os
import sys
from pathlib import Path

from minionerec.artifacts import MANIFEST, Manifest
from tests.artifacts.toy_artifact import is_current, names, recipe, write

STEPS = {"make", "_begin", "write", "_open_partial", "remove", "_seal", "_put_in_place", "_clean", "save", "replace_text"}
STEPS |= {"hold", "_acquire", "_create", "_release", "_break", "_rmtree_safe_fd"}
CONTENTS = {"old": "old", "new": "new content"}


def make(folder: Path, resumable: bool) -> None:
    recipe(folder, "new").make(lambda: write(folder, "new", CONTENTS["new"], resumable=resumable))


def stopped_at(step: int, folder: Path, how: str, resumable: bool) -> bool:
    """Replace the artefact in a process that stops before the given line is first run; whether it got to the end."""
    child = os.fork()
    if child == 0:
        seen = set()

        def trace(frame, event, _):
            if frame.f_code.co_name not in STEPS:
                return None
            line = (frame.f_code, frame.f_lineno)
            if event == "line" and line not in seen:
                seen.add(line)
                if len(seen) == step:
                    if how == "kill":
                        os._exit(9)
                    raise KeyboardInterrupt
            return trace

        code = 1
        try:
            sys.settrace(trace)
            make(folder, resumable)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def stop_everywhere(place: Path, how: str, older: bool, resumable: bool, stride: int, first: int) -> None:
    seen = set()
    for step in range(first, 1000, stride):
        base = place / str(step)
        folder = base / "sid"
        if older:
            write(folder, "old")
        finished = stopped_at(step, folder, how, resumable)
        if folder.exists():  # whatever bears the final name is whole
            settings = Manifest.load(folder).config["settings"]
            assert (folder / "deep/a.txt").read_text() == CONTENTS[settings]
            seen.add(settings)
        else:
            seen.add("nothing")
        make(folder, resumable)
        assert is_current(folder, "new") and names(base) == ["sid"] and names(folder) == ["deep", MANIFEST]
        if finished:
            break
    assert finished and step > 20
    # With an older artefact there is one moment, between two renames, when neither is in place.
    possible = {"old", "nothing", "new"} if older else {"nothing", "new"}
    assert seen == possible if stride == 1 else seen <= possible, seen


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # none of these stops is a power cut
    place, how, stride, first, *options = sys.argv[1:]
    stop_everywhere(Path(place), how, "older" in options, "resumable" in options, int(stride), int(first))
