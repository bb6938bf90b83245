import os
import random
import re
from pathlib import Path

import polars as pl
import pytest

import minionerec
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, DataError

pytestmark = pytest.mark.fast

FRAME = pl.DataFrame(
    {"user": ["ä", "b", None], "history": [[1, 2], [], [3]], "target": [1, None, 3]},
    schema={"user": pl.String, "history": pl.List(pl.Int32), "target": pl.Int32},
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run[1]" / "a*b.parquet"  # signs of a pattern, to polars
    path.parent.mkdir()
    FRAME.write_parquet(path)
    return path


def test_what_polars_wrote_comes_back(file):
    frame = read_parquet(file, ArtifactError, "")
    assert frame.schema == FRAME.schema and frame.equals(FRAME)


def test_damage_ends_in_the_error_alone(file):
    content, chance, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(150):
        spoilt = bytearray(content)
        for _ in range(chance.choice([1, 4])):
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        file.write_bytes(spoilt[: chance.choice([len(spoilt), chance.randrange(len(spoilt))])])
        try:
            read_parquet(file, DataError, "Fetch it again.")
        except DataError as error:
            assert f"{file}: not a readable parquet file (" in str(error) and str(error).endswith("Fetch it again.")
            refused += 1
    assert refused > 100


def test_a_missing_and_a_locked_file_are_named(file, monkeypatch):
    with pytest.raises(ArtifactError, match=r"none\.parquet: not found\. Run it\."):
        read_parquet(file.with_name("none.parquet"), ArtifactError, "Run it.")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # to root no file is locked
    with pytest.raises(ArtifactError, match=r"a\*b\.parquet: must not be read .* chmod u\+r"):
        read_parquet(file, ArtifactError, "")
    assert os.path.exists(file)


def test_nothing_else_lets_polars_take_a_path_for_a_pattern():
    """A run in `exp[1]` would read the data of `exp1`."""
    root = Path(minionerec.__file__).parents[1]
    calls = {}
    for path in [*root.glob("minionerec/**/*.py"), *root.glob("benchmarks/*.py")]:
        found = re.findall(r"pl\.(?:read|scan)_(?:parquet|csv|ipc|ndjson|json)\([^\n]*", path.read_text(encoding="utf-8"))
        calls |= {f"{path.name}: {call}": call for call in found}
    reads_bytes = {"text_lines.py", "sid_methods.py"}  # the latter reads the files of one public folder
    calls = {where: call for where, call in calls.items() if where.partition(":")[0] not in reads_bytes}
    assert calls and all("glob=False" in call for call in calls.values()), calls
