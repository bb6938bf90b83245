import sys
import types

import pytest

from minionerec.config import GreenConfig
from minionerec.errors import ConfigError
from minionerec.legommenders import carbon
from minionerec.legommenders.carbon import Meter


def test_without_settings_there_are_cpu_seconds_alone():
    with Meter(GreenConfig()) as meter:
        first, second = meter.lap(), meter.lap()
    assert set(first) == {"cpu_seconds", "wall_seconds"} and meter.note is None
    assert all(value >= 0 for value in (*first.values(), *second.values()))


def test_the_users_own_figures_replace_a_meter(monkeypatch):
    clock = iter([100.0, 136.0])
    monkeypatch.setattr(carbon.time, "monotonic", lambda: next(clock))
    with Meter(GreenConfig(watts=50, grams_per_kwh=400)) as meter:
        assert meter.lap()["grams_co2e"] == pytest.approx(50 * 36 / 3.6e6 * 400)
    assert meter.note == "assumed: 50 W, 400 g CO2e per kWh (green.watts, green.grams_per_kwh)"


@pytest.mark.parametrize(("part", "kind"), [("CPU(Cpu Load)", "assumed"), ("CPU(Intel Rapl)", "measured")])
def test_codecarbon_is_asked_and_said_to_measure_or_to_assume(monkeypatch, part, kind):
    class Tracker:
        def __init__(self, **options):
            assert options["country_iso_code"] == "DEU" and options["tracking_mode"] == "process"
            assert options["save_to_file"] is False
            self._hardware = [types.SimpleNamespace(description=lambda: part)]
            self.kilograms, self.running = iter([1e-6, 3e-6]), False

        def start(self):
            self.running = True

        def flush(self):
            return next(self.kilograms)

        def stop(self):
            self.running = False

    source = types.SimpleNamespace(get_global_energy_mix_data=lambda: {"DEU": {}})
    monkeypatch.setattr(carbon, "require_package", lambda name, what: None)
    monkeypatch.setitem(sys.modules, "codecarbon", types.SimpleNamespace(OfflineEmissionsTracker=Tracker))
    monkeypatch.setitem(sys.modules, "codecarbon.input", types.SimpleNamespace(DataSource=lambda: source))
    with Meter(GreenConfig(country="DEU")) as meter:
        assert meter._tracker.running
        assert [meter.lap()["grams_co2e"] for _ in range(2)] == pytest.approx([1e-3, 2e-3])
        assert meter.note == f"{kind}: codecarbon, {part}, electricity of DEU"
    assert not meter._tracker.running
    with pytest.raises(ConfigError, match=r"green.country XXX: codecarbon does not know it"):
        Meter(GreenConfig(country="XXX"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"watts": 5.0}, "set green.grams_per_kwh, too"),
        ({"country": "DEU", "watts": 5.0, "grams_per_kwh": 1.0}, "choose one way"),
        ({"country": "Germany"}, "three capital letters"),
    ],
)
def test_half_of_the_settings_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        GreenConfig(**fields)
