"""What a training costs: CPU seconds always, and grams of CO2e if the user says how to know them (section `green`)."""

import logging
import time
from typing import Any

from accelerate.utils import gather_object

from minionerec.config import GreenConfig
from minionerec.config.extras import require_package
from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError

_JOULES_PER_KWH = 3.6e6
_METERS = ("Rapl", "Gadget", "Emi", "Apple")  # what codecarbon calls a CPU whose power it reads; of others it knows the load


class Meter:
    """Counts from lap to lap. All processes of a launch make one and call `lap`; their CPU seconds are added up.

    Attributes:
        note: how emissions are known, in words; None if they are not.
    """

    def __init__(self, green: GreenConfig) -> None:
        """Begin to count.

        Raises:
            ConfigError: a country is set, and the package codecarbon is not installed or does not know it.
        """
        self._green = green
        self._tracker = None if green.country is None else _tracker(green.country)
        self._wall, self._cpu, self._grams = time.monotonic(), time.process_time(), 0.0
        self.note = self._note()

    def lap(self) -> dict[str, float]:
        """`cpu_seconds`, `wall_seconds` and, if known, `grams_co2e` since the last lap."""
        wall, cpu = time.monotonic(), time.process_time()
        figures = {"cpu_seconds": cpu - self._cpu, "wall_seconds": wall - self._wall}
        if self._green.watts is not None and self._green.grams_per_kwh is not None:
            figures["grams_co2e"] = figures["wall_seconds"] * self._green.watts / _JOULES_PER_KWH * self._green.grams_per_kwh
        elif self._tracker is not None:
            grams = 1000 * float(self._tracker.flush())
            figures["grams_co2e"], self._grams = grams - self._grams, grams
        self._wall, self._cpu = wall, cpu
        if distributed_state().num_processes > 1:
            shares = gather_object([figures])
            figures["cpu_seconds"] = sum(share["cpu_seconds"] for share in shares)
            if self._tracker is not None:  # each process has counted its own; a user's watts are the whole machine's
                figures["grams_co2e"] = sum(share["grams_co2e"] for share in shares)
        return figures

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracker is not None:
            self._tracker.stop()  # its thread would go on

    def _note(self) -> str | None:
        green = self._green
        if green.watts is not None:
            return f"assumed: {green.watts:g} W, {green.grams_per_kwh:g} g CO2e per kWh (green.watts, green.grams_per_kwh)"
        if self._tracker is None:
            return None
        parts = [part.description() for part in self._tracker._hardware]
        kind = "measured" if any(meter in part for part in parts for meter in _METERS) else "assumed"
        return f"{kind}: codecarbon, {', '.join(parts)}, electricity of {green.country}"


def _tracker(country: str) -> Any:
    require_package("codecarbon", "green.country")
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.input import DataSource

    if country not in DataSource().get_global_energy_mix_data():
        raise ConfigError(f"green.country {country}: codecarbon does not know it. Set green.watts and green.grams_per_kwh.")
    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it has its say before it reads its own option
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, tracking_mode="process", log_level="error", allow_multiple_runs=True
    )
    tracker.start()
    return tracker
