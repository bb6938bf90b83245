"""Section `data`."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from minionerec.config.checks import bounded, bounded_list, check_fields, check_name, check_text, cut, path
from minionerec.errors import ConfigError

ColumnRole = Literal[
    "user",
    "item",
    "timestamp",
    "rating",
    "label",
    "id",
    "title",
    "text",
    "description",
    "brand",
    "categories",
    "genres",
    "year",
]
_RATED = ("ml-100k", "ml-1m", "amazon-2018", "amazon-2023", "csv", "recbole")  # sources whose rows may have a rating or a label
_FILTERS = (
    *("positive", "filters", "title_rules", "start", "end", "widen_below_items", "deduplicate", "user_k", "item_k", "split"),
)
_DOWNLOADED = ("ml-100k", "ml-1m", "amazon-2018", "amazon-2023", "released")  # fetched if there is no data.path


@dataclass
class DataConfig:
    """Stage `data`: raw files to a Dataset."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("path",)  # the content of the files decides, wherever they lie

    source: Literal[
        "ml-100k",
        "ml-1m",
        "amazon-2018",
        "amazon-2023",
        "csv",
        "parquet",
        "recbole",
        "sequences",
        "letter",
        "released",
        "mimigenrec",
    ] = "ml-100k"
    """Layout of the raw files. `ml-100k`, `ml-1m`, `amazon-2018`, `amazon-2023` and `released` are downloaded if `path` is not
    given; the other layouts need `path`. data/README.md shows each layout. `parquet`: tables of any size that Spark or another
    engine has prepared (docs/spark.md)."""
    path: str | None = path()
    """Folder of the raw files; for `sequences` a text file. A relative path starts at the folder in which the command runs."""
    category: str | None = None
    """Which data set of a source: an Amazon category such as `Industrial_and_Scientific`, or the beginning of the file names in
    a folder of several data sets (of `mimigenrec` a subfolder). A folder that holds only one needs no category."""
    columns: dict[ColumnRole, str] = field(default_factory=dict)
    """What your files call their columns, for `csv`, `recbole` and `pairs.source csv`, e.g. {user: visitor, item: sku}. Names:
    user, item, timestamp, rating, label; id (an item's, where its file calls it otherwise), title, text, description, brand,
    categories, genres, year. Without it usual names are recognised (data/README.md); `timestamp: ''` says that the files have
    no times and their rows are in order of time."""
    positive: float | None = bounded(None, -1_000_000, 1_000_000)
    """Only rows with at least this label (a column `label` or `click`) or, without such a column, rating are interactions; the
    others are dropped and counted. null: every row is one, and files with labels or ratings at or below 0 are refused."""
    max_history: int = bounded(20, 1, 100_000)
    """Most recent items kept in a history (items; paper: 10)."""
    filters: Literal["named", "released"] = "named"
    """`named` applies the options below. `released` repeats the script of the released code: its title rules, windows in this
    machine's time zone, repeated rows stay, `user_k` also for items."""
    title_rules: bool | None = None
    """The released code's rules for titles: items without a title, with `<span id` in it, of one character or of more than 20
    words are dropped, with their interactions. null: for Amazon yes, otherwise no."""
    start: str | None = None
    """Interactions before this are left out: a month or day, UTC, e.g. 2016-10 (paper's Industrial: 1996-10)."""
    end: str | None = None
    """Interactions after the first instant of this month or day are left out (UTC; paper: 2018-11)."""
    widen_below_items: int = bounded(0, 0, 10**9)
    """While fewer items are left, the window begins a year earlier, but not before 1996; 0: never (items; released: 3000)."""
    deduplicate: bool | None = None
    """Of rows with the same user, item and timestamp keep only the first, and count the rest. null: yes, except under
    `filters: released`."""
    user_k: int = bounded(3, 1, 10**6)
    """Users with fewer interactions are dropped (interactions; at least 3 for leave-last-two-out; paper: 5)."""
    item_k: int | None = bounded(None, 0, 10**6)
    """Items with fewer interactions are dropped, and users and items checked again until all have enough; 0 keeps every listed
    item in the catalog. null: `user_k` for Amazon and under `filters: released`, otherwise 0 (interactions; paper: 5)."""
    split: Literal["leave-last-two-out", "chronological", "date"] = "leave-last-two-out"
    """`leave-last-two-out`: each user's last interaction is test, the one before valid. `chronological`: all examples in order
    of time, cut at `parts`. `date`: cut at `valid_from` and `test_from` (paper: chronological)."""
    parts: list[int] = bounded_list([8, 1, 1], 0, 10**6)
    """Shares of train, valid and test for `chronological` (paper: 8, 1, 1)."""
    valid_from: str | None = None
    """First day of the valid split for `date` (a month or day, UTC)."""
    test_from: str | None = None
    """First day of the test split for `date` (a month or day, UTC)."""
    missing_text: Literal["error", "drop"] = "error"
    """For an item without a title, or an interaction with an unlisted item: stop with an error, or drop it (the item with its
    interactions, or the rows of given splits whose lists name it) and count it. Title rules always drop and count such items.
    In lists of ids and in the released code's files nothing is missing: an item has its id or a title of its own."""
    on_error: Literal["stop", "skip"] = "stop"
    """For a row that cannot be read: stop and name it, or skip it. Skipped rows are counted, and listed in `skipped.txt`."""

    def __post_init__(self) -> None:
        check_fields("data", self)
        if self.category is not None:
            check_name("data.category", self.category)
        if self.split == "leave-last-two-out" and self.user_k < 3:
            raise ConfigError(f"data.user_k is {self.user_k}; leave-last-two-out needs at least 3 interactions per user.")
        if self.path is None and self.source not in _DOWNLOADED:
            raise ConfigError(f"data.source {self.source!r} needs data.path, the folder that holds your files.")
        if self.path is None and self.category is None and self.source in ("amazon-2018", "amazon-2023", "released"):
            raise ConfigError(
                f"data.source {self.source!r} needs data.category, e.g. Office_Products, or data.path, a folder of files."
            )
        self._check_rows()
        self._check_window()
        if self.filters == "released":
            self._check_released()
        if self.source in ("released", "mimigenrec"):
            self.refuse_filters(f"the splits of data.source {self.source!r} are given by its files")

    def _check_rows(self) -> None:
        if self.positive is not None and self.source not in _RATED:
            raise ConfigError(
                f"data.positive has no effect on data.source {self.source!r}: its rows have no label and no rating."
            )
        for role, column in self.columns.items():
            if role not in get_args(ColumnRole):
                raise ConfigError(f"data.columns names {cut(role)!r}; expected one of {', '.join(get_args(ColumnRole))}.")
            if not isinstance(column, str):
                raise ConfigError(f"data.columns.{role} is {cut(column)}; expected the name of a column.")
            check_text(f"data.columns.{role}", column)
            if not column and role != "timestamp":
                raise ConfigError(f"data.columns {role} is empty; only a timestamp may be, in files without times.")

    def _check_window(self) -> None:
        for name in ("start", "end", "valid_from", "test_from"):
            text = getattr(self, name)
            if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?", text):
                raise ConfigError(f"data.{name} is {text!r}; expected a month like 2016-10 or a day like 2016-10-31.")
        if self.start and self.end and self.start > self.end:
            raise ConfigError(f"data.start {self.start} is after data.end {self.end}.")
        if self.widen_below_items and self.start is None:
            raise ConfigError("data.widen_below_items moves the beginning of the window: set data.start, or leave it out.")
        if len(self.parts) != 3 or min(self.parts) < 0 or not self.parts[0]:
            raise ConfigError(f"data.parts is {self.parts}; expected three shares, e.g. [8, 1, 1], the first above 0.")
        if self.split == "date" and not (self.valid_from and self.test_from and self.valid_from < self.test_from):
            raise ConfigError(
                f"data.split is date: data.valid_from ({self.valid_from}) and data.test_from ({self.test_from}) must be set, "
                "the first before the second."
            )
        if self.split != "date" and (self.valid_from or self.test_from):
            raise ConfigError(f"data.valid_from and data.test_from belong to data.split date; it is {self.split}.")
        if self.split != "chronological" and self.parts != [8, 1, 1]:
            raise ConfigError(f"data.parts belongs to data.split chronological; it is {self.split}.")

    def _check_released(self) -> None:
        if self.item_k not in (None, self.user_k):
            raise ConfigError(
                f"data.item_k is {self.item_k}, but under data.filters released items need data.user_k ({self.user_k}) "
                "interactions too: the released code's own item_k has no effect. Leave data.item_k out."
            )
        if self.title_rules is False or self.deduplicate:
            name, value = ("title_rules", False) if self.title_rules is False else ("deduplicate", True)
            raise ConfigError(f"data.{name} is {value}, which data.filters released excludes. Leave it out.")

    def refuse_filters(self, reason: str) -> None:
        """Refuse filters and splits for raw files that are split already.

        Raises:
            ConfigError: a field is set that would have no effect.
        """
        default = {entry.name: getattr(DataConfig, entry.name, None) for entry in dataclasses.fields(DataConfig)}
        default["parts"] = [8, 1, 1]
        for name in _FILTERS:
            if getattr(self, name) != default[name]:
                raise ConfigError(f"data.{name} is {getattr(self, name)}, but {reason}: it would have no effect. Leave it out.")

    @property
    def is_amazon(self) -> bool:
        """Whether the raw files are an Amazon dump."""
        return self.source.startswith("amazon-")

    @property
    def applies_title_rules(self) -> bool:
        """Whether the title rules apply: `title_rules`, or its default for this source."""
        return self.filters == "released" or (self.is_amazon if self.title_rules is None else self.title_rules)

    @property
    def drops_duplicates(self) -> bool:
        """Whether repeated rows are dropped: `deduplicate`, or its default for these filters."""
        return self.filters == "named" if self.deduplicate is None else self.deduplicate

    @property
    def item_threshold(self) -> int:
        """Fewest interactions of an item: `item_k`, or its default for this source and these filters."""
        if self.item_k is not None:
            return self.item_k
        return self.user_k if self.is_amazon or self.filters == "released" else 0

    @property
    def split_dates(self) -> dict[str, str]:
        """The first days of valid and test, for `date`."""
        return {"valid_from": self.valid_from or "", "test_from": self.test_from or ""}
