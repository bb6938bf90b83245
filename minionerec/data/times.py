"""Timestamps: numbers in seconds, ms, µs or ns since 1970 (UTC), dates in the forms of public data, and windows.

Times are exact: a fraction of a second decides the order of two clicks, and whether one repeats the other. A column of whole
numbers keeps its unit, which `per_second` tells from their size. Fractions and dates become Datetime in the coarsest unit (ms,
µs, ns) that holds all of them. Seconds are what a Dataset stores.
"""

from datetime import UTC, date, datetime

import polars as pl

from minionerec.errors import ConfigError, DataError

_SECONDS_END = 100_000_000_000  # year 5138 in seconds, March 1973 in milliseconds
_UNITS = ((1, "seconds"), (1000, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds"))
_TYPED = {"ms": 3, "us": 6, "ns": 9}  # decimal places of a second
_FLOAT_END = 9e12  # a larger float64 times a million is no Int64

_NUMBER = r"^\+?\d+(?:\.\d*)?$"
_CLOCK = r"(?<clock>\d{1,2}:\d{2}(?::\d{2})?)(?:[.,](?<digits>\d+))? *(?<zone>Z|UTC|GMT|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?"
# Dates in capitals, each form with how its day is written. A month as a number comes first only if AM or PM follows: 03/04/2019
# alone may be either day.
_FORMS = (
    (rf"^(?<day>\d{{4}}[-/]\d{{2}}[-/]\d{{2}})(?:[T ] *{_CLOCK})?$", ("%Y-%m-%d",)),
    (r"^(?<day>\d{1,2}/\d{1,2}/\d{4}) +(?<clock>\d{1,2}:\d{2}(?::\d{2})? ?[AP]M)(?<digits>)(?<zone>)$", ("%m-%d-%Y",)),  # MIND
    (rf"^(?:POSTED )?(?<day>[A-Z]{{3,}} +\d{{1,2}}, \d{{4}})\.?(?: {_CLOCK})?$", ("%b %d, %Y", "%B %d, %Y")),  # Steam
)
_GOODREADS = r"^[A-Z]{3} ([A-Z]{3} +\d{1,2}) (\d{2}:\d{2}:\d{2}) ([+-]\d{4}) (\d{4})$"  # Sun Jul 30 07:44:10 -0700 2017


def read(column: pl.Series, where: str = "these files") -> pl.Series:
    """Timestamps as text: Int64 in the file's own unit if all are whole numbers, otherwise Datetime; null if unreadable.

    Dates without a zone are UTC.

    Args:
        where: the file, for messages.

    Raises:
        DataError: numbers with fractions have different units.

    >>> read(pl.Series(["1593878904.238", "2020-07-04T18:08:24.5+02:00"])).dt.to_string("%H:%M:%S%.3f").to_list()
    ['16:08:24.238', '16:08:24.500']
    """
    text = column.str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole
    rows = pl.concat([_numbers(text), _dates(text)], how="horizontal")
    dated = pl.col("date").is_not_null()
    if not rows.select((dated | (pl.col("digits") != "")).any()).item():
        return rows["whole"].rename(column.name)
    unit = per_second(*extremes(rows.filter(~dated)["whole"].drop_nulls()), where)
    rows = rows.select(
        whole=pl.coalesce("date", "whole"),
        digits=pl.when(dated).then("date digits").otherwise("digits"),
        places=pl.when(dated).then(0).otherwise(len(str(unit)) - 1),
    )
    needed = int(rows.select((pl.col("places") + pl.col("digits").str.len_chars()).max()).item() or 0)
    name, places = next(((name, places) for name, places in _TYPED.items() if places >= needed), ("ns", 9))
    shift = places - pl.col("places")
    factor = pl.lit(10, pl.Int64).pow(shift)
    padded = pl.concat_str("digits", pl.lit("0" * 9)).str.slice(0, shift)
    fraction = pl.when(shift > 0).then(padded.cast(pl.Int64, strict=False)).otherwise(0)
    fits = pl.col("whole").abs() < (2**63 - 1) // factor
    exact = pl.when(fits).then(pl.col("whole") * factor + fraction)
    return rows.select(exact.cast(pl.Datetime(name)).alias(column.name)).to_series()  # type: ignore[arg-type]


def _numbers(text: pl.Series) -> pl.DataFrame:
    """Of each number `whole`, the part before the point, and `digits`, those after it without zeros at the end."""
    stamp = pl.col(text.name)
    # Signs and exponents make a float. At the size of today's seconds it is exact to a fourth of a microsecond.
    value = stamp.cast(pl.Float64, strict=False)
    micros = pl.when(value.is_between(-_FLOAT_END, _FLOAT_END)).then((value * 1e6).round()).cast(pl.Int64, strict=False)
    digits = pl.when(micros > 0).then((micros % 10**6).cast(pl.String).str.zfill(6))  # at or below 0 a time is unknown anyway
    plain = stamp.str.contains(_NUMBER)
    return text.to_frame().select(
        whole=pl.when(plain)
        .then(stamp.str.extract(r"^\+?(\d+)").cast(pl.Int64, strict=False))
        .otherwise(
            pl.coalesce(stamp.cast(pl.Int64, strict=False), micros // 10**6, value.floor().cast(pl.Int64, strict=False))
        ),
        digits=pl.when(plain)
        .then(stamp.str.extract(r"\.(\d*)$").str.slice(0, 9))
        .otherwise(digits)
        .fill_null("")
        .str.strip_chars_end("0"),
    )


def _dates(text: pl.Series) -> pl.DataFrame:
    """Of each date `date`, its seconds since 1970, null for other text, and `date digits`, the fraction of its last second."""
    stamps = text.str.to_uppercase().str.replace(_GOODREADS, "$1, $4 $2 $3").to_frame("stamp")
    seconds, digits = [], []
    for pattern, days in _FORMS:
        parts = pl.col("stamp").str.extract_groups(pattern)
        day, clock, fraction, zone = (parts.struct.field(name) for name in ("day", "clock", "digits", "zone"))
        day = day.str.replace_all("/", "-")
        clock = clock.fill_null("0:00").str.replace(r"(\d)([AP]M)$", "$1 $2")
        midnight = pl.coalesce([day.str.to_date(form, strict=False) for form in days]).cast(pl.Int64) * 86_400
        forms = ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p")
        time = pl.coalesce([clock.str.to_time(form, strict=False) for form in forms]).cast(pl.Int64) // 10**9
        offset = zone.str.extract(r"^[+-](\d{2})").cast(pl.Int64).fill_null(0) * 3600
        offset += zone.str.extract(r"^[+-]\d{2}:?(\d{2})$").cast(pl.Int64).fill_null(0) * 60
        ahead = pl.when(zone.str.starts_with("-")).then(-offset).otherwise(offset)
        seconds.append(midnight + time - ahead)
        digits.append(fraction)
    return stamps.select(
        pl.coalesce(seconds).alias("date"),
        pl.coalesce(digits).fill_null("").str.slice(0, 9).str.strip_chars_end("0").alias("date digits"),
    )


def whole_number(column: pl.Expr) -> pl.Expr:
    """Text as Int64, null for anything but a whole number; 5.0 and 1e3 are whole."""
    text = column.str.strip_chars()
    real = text.cast(pl.Float64, strict=False)
    # Integers first: a float64 would merge large ones.
    return pl.coalesce(text.cast(pl.Int64, strict=False), pl.when(real == real.floor()).then(real).cast(pl.Int64, strict=False))


def unit_of(stamps: pl.Series, where: str) -> int:
    """How many units of timestamps, as `read` returns them, make a second.

    Raises:
        DataError: they are of different units, or are dates without separators.
    """
    if isinstance(stamps.dtype, pl.Datetime):
        return int(10 ** _TYPED[str(stamps.dtype.time_unit)])
    return per_second(*extremes(stamps), where)


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
        DataError: the two are of different units, or are dates without separators, such as 20161031.
    """

    def unit(value: int) -> int:
        return next(index for index in range(4) if value < _SECONDS_END * 1000**index or index == 3)

    if _is_compact_date(low) and _is_compact_date(high):
        raise DataError(
            f"{where}: timestamps from {low} to {high} look like dates without separators; as seconds they would all be of "
            f"August 1970. Write them as {str(low)[:4]}-{str(low)[4:6]}-{str(low)[6:]}."
        )
    first, last = unit(max(low, 0)), unit(max(high, 0))
    if first != last and low > 0:
        raise DataError(
            f"{where}: timestamps from {low} to {high} look like {_UNITS[first][1]} and {_UNITS[last][1]} mixed. "
            "Give all of them in one unit."
        )
    return _UNITS[last][0]


def _is_compact_date(value: int) -> bool:
    try:
        return 1970 <= date(value // 10_000, value // 100 % 100, value % 100).year < 2100
    except (ValueError, OverflowError):
        return False


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
