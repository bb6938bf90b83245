"""A lock file: only one process at a time makes an artefact. It works on every file system that a run may lie on.

A process creates the file atomically (by a hard link, else with O_EXCL) and writes into it who it is. A killed process leaves
its file behind. On the same machine the next process notices: no process has this number, or the one that has it began later.
Another machine, or another container, cannot tell; there the lock holds until somebody deletes the file, and the message says
so.
"""

import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil

from minionerec.artifacts.files import content_hash, disk_full, no_space
from minionerec.errors import ArtifactError, LockedError

_POLL = 0.5  # seconds between two looks at a lock that somebody else holds
_HALF_WRITTEN = 5.0  # seconds after which a lock file without content was left by a process that died while writing it
_HIDDEN = "hidden"  # a process of another user, of which the system tells no more than that there is one
_INITIAL_NAMESPACE = "pid:[4026531836]"  # of processes outside any container (Linux, a constant of the kernel)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        machine: equal if two processes can look each other up by number.
        began: tells the process from a later one with the same number.
        launch: the address at which the processes of a launch meet; empty for a single process.
        token: of this one acquisition.
    """

    host: str
    machine: str
    pid: int
    began: str
    since: str
    launch: str
    token: str

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended."""
        return self.machine == _machine() and _began(self.pid) not in (self.began, _HIDDEN)

    @property
    def is_of_this_launch(self) -> bool:
        """Whether it is a process that `accelerate launch` started together with this one."""
        return bool(self.launch) and self.launch == _launch()


@dataclasses.dataclass
class _Held:
    token: str
    process: int
    thread: int
    depth: int = 1


_held: dict[str, _Held] = {}  # by the path of the lock


@contextmanager
def hold(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock; a thread that holds it already may do so again.

    Args:
        path: of the lock file; missing folders are made, and removed afterwards if nothing else is in them.
        what: is being made, for the message.
        wait: wait until a process that holds it has finished, instead of refusing.

    Raises:
        LockedError: another process or thread holds it, and `wait` is not set.
        ArtifactError: the file cannot be written.
    """
    name = os.path.abspath(path)
    held = _held.get(name)
    if held is not None and (held.process, held.thread) == (os.getpid(), threading.get_ident()):
        held.depth += 1
        try:
            yield
        finally:
            held.depth -= 1
        return
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        token = _acquire_in_folder(path, what, wait)
    except OSError as error:
        if disk_full(error):
            raise no_space(path.parent) from error
        raise ArtifactError(f"{path}: cannot be written ({error}). Choose another folder with --out DIR.") from error
    _held[name] = _Held(token, os.getpid(), threading.get_ident())
    try:
        _remove_leftovers(path)
        yield
    finally:
        if _held[name].process == os.getpid():  # not in a fork of this process
            del _held[name]
            _release(path, token)
            with suppress(OSError):  # a folder holds something else
                for parent in missing:
                    parent.rmdir()


def is_ours(path: Path) -> bool:
    """Whether this process still holds the lock: a person may have deleted the file, and another process made its own."""
    held, holder = _held.get(os.path.abspath(path)), _read(path)
    return held is not None and holder is not None and holder.token == held.token


def is_abandoned(path: Path) -> bool:
    """Whether a dead process has left the lock."""
    holder = _read(path)
    return holder is not None and holder.is_dead


def other_holder(path: Path) -> Holder | None:
    """Who else holds a lock, as far as this machine can tell; None if nobody does."""
    holder = _read(path)
    held = _held.get(os.path.abspath(path))
    if holder is None or holder.is_dead or (held is not None and held.token == holder.token and held.process == os.getpid()):
        return None
    return holder


def wait_for_other_launches(path: Path) -> None:
    """Wait while a process that does not belong to this launch holds the lock."""
    while (holder := other_holder(path)) is not None and not holder.is_of_this_launch:
        time.sleep(_POLL)


def _acquire_in_folder(path: Path, what: str, wait: bool) -> str:
    """Make the folder and take the lock in it; a process that was refused may remove its empty folder in between."""
    for _ in range(10):
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _acquire(path, what, wait)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _acquire(path, what, wait)


def _acquire(path: Path, what: str, wait: bool) -> str:
    announced, unreadable_since = False, None
    while True:
        mine = _this_process()
        if _create(path, mine):
            return mine.token
        holder = _read(path)
        if holder is None:
            continue  # it has just been released
        if holder.pid == 0:  # nothing readable in it yet
            unreadable_since = unreadable_since or time.monotonic()
            if time.monotonic() - unreadable_since > _HALF_WRITTEN:
                _break(path, holder)
            time.sleep(_POLL / 10)
            continue
        unreadable_since = None
        if holder.is_dead:
            _break(path, holder)
            continue
        if not wait:
            raise LockedError(_refusal(path, what, holder))
        if not announced:
            print(
                f"{what}: waiting for process {holder.pid} on {holder.host}, which makes it since {holder.since}."
                + _perhaps_dead(path, holder),
                flush=True,
            )
            announced = True
        time.sleep(_POLL)


def _refusal(path: Path, what: str, holder: Holder) -> str:
    return (
        f"{what}: process {holder.pid} on {holder.host} has been making it since {holder.since}. Nothing was changed. Wait for "
        f"it with --wait, or choose another folder with --out DIR.{_perhaps_dead(path, holder)}"
    )


def _perhaps_dead(path: Path, holder: Holder) -> str:
    """What to do if the holder is on another machine and died, a sentence after a blank; empty if it lives on this one."""
    if holder.machine == _machine():
        return ""
    return f" This machine cannot tell whether that process still runs; if it does not, delete {path}."


def _create(path: Path, holder: Holder) -> bool:
    """Create the lock file with its content, unless there is one."""
    text = json.dumps(dataclasses.asdict(holder)) + "\n"
    temporary = path.with_name(f"{path.name}.{holder.token}.new")
    temporary.write_text(text, encoding="utf-8")
    try:
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # The reply of a network file system may have been lost, and the request repeated: then the link is ours.
            return temporary.stat().st_nlink > 1
        except FileNotFoundError:
            return False  # somebody removed the temporary file; try again
        except OSError:  # no hard links here
            return _create_exclusively(path, text)
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return True


def _read(path: Path) -> Holder | None:
    """Who holds a lock; None if there is no lock. The process number is 0 if the file is not readable (yet)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        if not path.parent.is_dir():
            return None
        raise ArtifactError(f"{path}: the lock cannot be read ({error.strerror}).") from None
    try:
        values = json.loads(text)
        names = [field.name for field in dataclasses.fields(Holder)]
        return Holder(**{name: values.get(name, "") for name in names} | {"pid": int(values["pid"])})
    except (AttributeError, KeyError, TypeError, ValueError):
        return Holder("unknown", "unknown", 0, "", "unknown", "", content_hash(text)[:32])


def _break(path: Path, dead: Holder) -> None:
    """Remove a dead process's lock. A second lock, named after the dead one, keeps two processes from doing so at once.

    Without it the slower one could remove the lock that the faster one has just created.
    """
    marker = path.with_name(f"{path.name}.{dead.token}")
    token = _acquire(marker, str(path), wait=True)
    try:
        holder = _read(path)
        if holder is not None and holder.token == dead.token:
            path.unlink(missing_ok=True)
    finally:
        _release(marker, token)


def _release(path: Path, token: str) -> None:
    with suppress(OSError, ArtifactError):  # the folder may be gone
        holder = _read(path)
        if holder is not None and holder.token == token:
            path.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they created or broke this lock."""
    with suppress(OSError, ArtifactError):
        for sibling in path.parent.iterdir():
            if sibling.name.startswith(f"{path.name}.") and (holder := _read(sibling)) is not None and holder.is_dead:
                sibling.unlink(missing_ok=True)


def _this_process() -> Holder:
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        began=_began(os.getpid()) or "",
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        launch=_launch(),
        token=uuid.uuid4().hex,
    )


def _launch() -> str:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}" if several else ""


@cache
def _machine() -> str:
    """Equal for two processes only if each can look the other one up by its number."""
    if sys.platform != "linux":
        return f"{socket.gethostname()} {uuid.getnode()}"
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    # Containers often share the identity of their image; the kernel's boot tells their machines apart.
    identity = _line("/etc/machine-id") if namespace == _INITIAL_NAMESPACE else ""
    return f"{socket.gethostname()} {identity or _boot()} {namespace}"


@cache
def _boot() -> str:
    return _line("/proc/sys/kernel/random/boot_id")


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """When a process began, as text that no other process with this number has; None if there is no such process."""
    try:
        if sys.platform == "linux":
            # Clock ticks since the boot, which setting the clock does not change; the 20th field after the command's name.
            status = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if not status:
                os.kill(pid, 0)  # raises unless the system only hides the process
                return _HIDDEN
            return None if status[0] in "ZX" else f"{_boot()} {status[19]}"
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None
    except (PermissionError, psutil.AccessDenied):
        return _HIDDEN
