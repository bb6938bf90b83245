"""Timestamps: numbers in seconds, ms, µs or ns since 1970 (UTC), ISO 8601 dates, and the bounds of windows."""

from datetime import UTC, datetime

import polars as pl

from minionerec.errors import ConfigError, DataError

_SECONDS_END = 100_000_000_000  # year 5138 in seconds, March 1973 in milliseconds
_UNITS = ((1, "seconds"), (1000, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds"))


def parsed(column: pl.Expr) -> pl.Expr:
    """Text as Int64: integers as they are, other numbers rounded down; null for anything else."""
    text = column.str.strip_chars()
    # Integers first: a float64 would merge nanoseconds.
    return pl.coalesce(
        text.cast(pl.Int64, strict=False), text.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
    )


def parsed_or_dated(column: pl.Expr) -> pl.Expr:
    """Numbers as `parsed` reads them, and ISO 8601 dates and times (UTC where no zone is given) as seconds."""
    text = column.str.strip_chars().str.replace("T", " ").str.replace(r"(Z|\+00:?00)$", "")
    formats = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    dated = pl.coalesce([text.str.to_datetime(form, strict=False, time_unit="us") for form in formats])
    return pl.coalesce(parsed(column), dated.dt.epoch("s"))


def extremes(times: pl.Series) -> tuple[int, int]:
    """The smallest and the largest of the timestamps above zero; 0 if there is none."""
    positive = times.filter(times > 0)
    return (int(positive.min()), int(positive.max())) if len(positive) else (0, 0)  # type: ignore[arg-type]


def per_second(low: int, high: int, where: str) -> int:
    """How many units of these timestamps make a second: 1, 1000, 10**6 or 10**9.

    Zero stands for an unknown time in any unit.

    Args:
        low, high: the smallest and the largest timestamp above zero.

    Raises:
        DataError: the two are of different units.
    """

    def unit(value: int) -> int:
        return next(index for index in range(4) if value < _SECONDS_END * 1000**index or index == 3)

    first, last = unit(max(low, 0)), unit(max(high, 0))
    if first != last and low > 0:
        raise DataError(
            f"{where}: timestamps from {low} to {high} look like {_UNITS[first][1]} and {_UNITS[last][1]} mixed. "
            "Give all of them in one unit."
        )
    return _UNITS[last][0]


def instant(text: str, field: str, *, local: bool = False) -> int:
    """The beginning of `2016-10` or `2016-10-31`, in seconds since 1970.

    Args:
        local: in this machine's time zone instead of UTC, as the released code's script has it.

    Raises:
        ConfigError: not such a date.
    """
    for form in ("%Y-%m-%d", "%Y-%m"):
        try:
            day = datetime.strptime(text, form)
        except ValueError:
            continue
        return int((day.astimezone() if local else day.replace(tzinfo=UTC)).timestamp())
    raise ConfigError(f"data.{field} is {text!r}; expected a month like 2016-10 or a day like 2016-10-31.")


def year_earlier(text: str) -> str:
    """`2016-10` becomes `2015-10`; a leap day the 28th of February."""
    year, rest = text.split("-", 1)
    return f"{int(year) - 1:04d}-{'02-28' if rest == '02-29' else rest}"
