"""Section `serve`."""

from dataclasses import dataclass, field

from minionerec.config.checks import bounded, check_fields
from minionerec.config.evaluation import MOST_BEAMS
from minionerec.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_REQUESTS = 10_000  # of a call
MOST_NAMED = 100  # sets of items; each takes a byte per item of the catalog


@dataclass
class ServeConfig:
    """How a model answers over HTTP. Only `mixture` changes a list; `run.yaml` records no field."""

    host: str = "127.0.0.1"
    """Address to listen at. Any other than this machine's own (127.0.0.1, ::1, localhost) also needs `serve.open`: the service
    has no authentication."""
    port: int = bounded(8000, 0, 65535)
    """Port to listen at; 0 for a free one, which the first line names."""
    open: bool = False
    """Whether other machines may ask. Put a proxy with authentication and TLS in front."""
    max_wait_ms: float = bounded(4.0, 0, 1000)
    """A batch that is not full begins when no request has come for so long (milliseconds). If requests keep coming, it begins
    after so long, or after a quarter of the time that a batch takes if that is longer. Both times begin when the batch before
    has ended."""
    max_batch: int = bounded(16, 1, 4096)
    """Requests computed at once; on a GPU more are faster (requests)."""
    max_beam_rows: int = bounded(800, 1, 10**6)
    """Beams of a batch, summed over its requests; a request with more is computed alone (beams)."""
    queue: int = bounded(256, 1, 10**6)
    """Requests that may wait; a call that finds no room gets status 503 and is told when to come again (requests)."""
    timeout_ms: int = bounded(2000, 1, 600_000)
    """How long a request may take before it gets status 504 (milliseconds)."""
    drain_s: int = bounded(10, 0, 3600)
    """How long a stop waits for the answers of requests that have arrived (seconds)."""
    max_body: int = bounded(2**20, 1024, 2**30)
    """Size of a call (bytes)."""
    max_requests: int = bounded(64, 1, MOST_REQUESTS)
    """Requests of a call (requests)."""
    max_history: int = bounded(1000, 1, 10**6)
    """Items of a history that a request may send (items)."""
    max_listed: int = bounded(10_000, 0, 10**7)
    """Items in `allow` and in `deny` of a request, each (items)."""
    max_k: int = bounded(500, 1, MOST_BEAMS)
    """Items of a list (items)."""
    max_beams: int = bounded(500, 1, MOST_BEAMS)
    """Beams of a request (beams)."""
    mixture: bool = True
    """Answer with what `minionerec mixture` mixes into the run's model, if it was run; otherwise with the model alone."""
    named: list[str] = field(default_factory=list)
    """Sets of items for the filter `named`, each as NAME=FILE; the file holds an item's id a line. A reload reads the files
    again."""
    examples: bool | None = None
    """Whether the page may show histories of the test split; null: unless other machines may ask."""
    allow_reload: bool = False
    """Whether a client may have another run loaded, or go back to the one before: POST /v1/reload."""

    def __post_init__(self) -> None:
        check_fields("serve", self)
        if not self.host.strip():
            raise ConfigError("serve.host is empty; expected an address of this machine, such as 127.0.0.1.")
        if self.host not in LOOPBACK and not self.open:
            raise ConfigError(
                f"serve.host is {self.host}, so other machines could ask, and the service has no authentication. If that is "
                "meant, add --serve.open true; else leave serve.host at 127.0.0.1."
            )
        if self.queue < self.max_requests:
            raise ConfigError(
                f"serve.queue {self.queue} is smaller than serve.max_requests {self.max_requests}: a call of this size would "
                f"never find room. Set serve.queue to at least {self.max_requests}, or serve.max_requests lower."
            )
        if len(self.named) > MOST_NAMED:
            raise ConfigError(f"serve.named has {len(self.named)} sets; {MOST_NAMED} at most.")
        self.named_files()

    def named_files(self) -> dict[str, str]:
        """The sets of items by name, each with its file.

        Raises:
            ConfigError: an entry is not NAME=FILE, or two have one name.
        """
        files: dict[str, str] = {}
        for number, entry in enumerate(self.named):
            name, equals, file = entry.partition("=")
            if not (name.strip() and equals and file.strip()):
                raise ConfigError(f"serve.named[{number}] is {entry!r}; expected NAME=FILE, such as in_stock=stock.txt.")
            if name in files:
                raise ConfigError(f"serve.named has two sets called {name!r}; give each its own name.")
            files[name] = file
        return files

    @property
    def shows_examples(self) -> bool:
        """Whether the page may show histories of the test split."""
        return not self.open if self.examples is None else self.examples
