"""The commands that are no stage."""

import pytest

from minionerec.cli import main
from minionerec.data import sources
from minionerec.data.download import KnownFile

pytestmark = pytest.mark.fast


def test_list_and_get(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in sources.SOURCES) and "no redistribution" in printed
    assert main(["data", "list", "released/O"]) == 0
    assert capsys.readouterr().out.count("https://") == 1
    file = KnownFile("ml-1m.zip", 5, None)
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ml-1m.zip").write_bytes(b"films")  # fetched before
    monkeypatch.setitem(sources.SOURCES, "ml-1m", sources.SOURCES["ml-1m"]._replace(files=(file,)))
    assert main(["data", "get", "ml-1m"]) == 0
    assert "minionerec data prepare --data.source ml-1m" in capsys.readouterr().out
    for arguments, message in (
        (["get", "ml-1k"], "Did you mean ml-1"),
        (["get"], "minionerec data get needs a name: a name that `minionerec data list` shows."),
        (["list", "zzz"], "no dataset begins with 'zzz'"),
        (["get", "ml-1m", "--fast"], "minionerec data get has no option --fast."),
        (["prepair"], "Did you mean data prepare?"),
        (["--config", "ml-100k"], "needs to know what to do, for example: minionerec data prepare."),
    ):
        assert main(["data", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
