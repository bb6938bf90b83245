"""Section `green`."""

from dataclasses import dataclass

from minionerec.config.checks import bounded, check_fields
from minionerec.errors import ConfigError


@dataclass
class GreenConfig:
    """What a training of `minionerec lego` emits, measured or assumed.

    Without any of these fields only CPU seconds are recorded.
    """

    country: str | None = None
    """Three letters of ISO 3166 of the country whose mix of electricity counts, e.g. DEU: the package codecarbon (extra
    `green`) then measures the power, or assumes it if the machine has no meter. null: no emissions."""
    watts: float | None = bounded(None, 0, 10**7, above=True)
    """In place of `country`: power of the machine while it trains (W). Needs `grams_per_kwh`."""
    grams_per_kwh: float | None = bounded(None, 0, 10**5, above=True)
    """In place of `country`: emissions of the electricity (g CO2e per kWh). Needs `watts`."""

    def __post_init__(self) -> None:
        check_fields("green", self)
        if (self.watts is None) != (self.grams_per_kwh is None):
            absent = "watts" if self.watts is None else "grams_per_kwh"
            raise ConfigError(f"green.watts and green.grams_per_kwh go together; set green.{absent}, too.")
        if self.country is not None and self.watts is not None:
            raise ConfigError("green.country is set, and green.watts, too; choose one way to know the emissions.")
        if self.country is not None and not (len(self.country) == 3 and self.country.isascii() and self.country.isupper()):
            raise ConfigError(f"green.country is {self.country!r}; expected three capital letters of ISO 3166, e.g. DEU.")
