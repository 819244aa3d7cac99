"""Energy of a piece of work, by codecarbon, always with the way it was found: measured, or estimated.

codecarbon reads RAPL counters of the CPU and NVML counters of the GPU where it may; elsewhere it estimates from the
CPU's load and its rated power. The memory's share is always an estimate. No network is used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from moeits.errors import MoeitsError, SettingError
from moeits.runtime import need

MEASURED_CPU_MODES = ("intel_rapl", "intel_power_gadget", "windows_emi")


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a piece of work took."""

    seconds: float
    joules: float | None = None
    mode: str | None = None
    """How the joules were found, such as `cpu estimated (cpu_load), memory estimated`."""
    co2_grams: float | None = None
    """With the mean carbon intensity of the country's electricity; None if no country was given."""
    country: str | None = None
    """ISO code of three letters."""
    why_not: str | None = None
    """If nothing was measured, a sentence that says why."""


class EnergyMeter:
    """Seconds and, if `wanted`, joules between `start` and `stop`.

    What cannot be measured is None with a sentence, never a guess. Raises SettingError for a country that codecarbon
    does not know.
    """

    def __init__(self, *, wanted: bool = True, country: str | None = None) -> None:
        self._wanted, self._country = wanted, check_country(country)
        self._tracker: Any = None
        self._why_not: str | None = None if wanted else "Energy was not asked for."

    def start(self) -> None:
        """Begin; the seconds that codecarbon needs to look at the machine do not count."""
        if self._wanted:
            try:
                self._tracker = _tracker(self._country)
                self._tracker.start()
            except MoeitsError as error:
                self._why_not = str(error)
            except Exception as error:
                # codecarbon reads counters of the operating system, which fail in more ways than it names.
                self._tracker, self._why_not = None, f"codecarbon cannot measure here: {type(error).__name__} {error}."
        self._began = perf_counter()

    def stop(self) -> Energy:
        """End, and say what it took."""
        seconds = perf_counter() - self._began
        if self._tracker is None:
            return Energy(seconds=seconds, why_not=self._why_not)
        try:
            self._tracker.stop()
            found = self._tracker.final_emissions_data
        except Exception as error:
            return Energy(seconds=seconds, why_not=f"codecarbon stopped measuring: {type(error).__name__} {error}.")
        return Energy(
            seconds=seconds,
            joules=found.energy_consumed * 3.6e6,
            mode=_mode(self._tracker, found),
            co2_grams=found.emissions * 1000 if self._country else None,
            country=self._country,
        )


def energy_of(work: Callable[[], Any], *, wanted: bool = True, country: str | None = None) -> tuple[Any, Energy]:
    """What the work returns, and what it took."""
    meter = EnergyMeter(wanted=wanted, country=country)
    meter.start()
    result = work()
    return result, meter.stop()


def check_country(country: str | None) -> str | None:
    """An ISO code of three letters, in capitals. Raises SettingError."""
    if country is None:
        return None
    if len(country) != 3 or not country.isalpha():
        raise SettingError(f"--country {country} is not a country: give an ISO code of three letters, such as ESP.")
    return country.upper()


def _tracker(country: str | None) -> Any:
    codecarbon = need("codecarbon", extra="measure")
    # It greets on standard error before it has read its own log_level.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    # The energy does not depend on the country; codecarbon's offline tracker wants one all the same.
    return codecarbon.OfflineEmissionsTracker(
        country_iso_code=country or "ESP",
        tracking_mode="process",
        output_methods=[],
        log_level="critical",
        allow_multiple_runs=True,
    )


def _mode(tracker: Any, found: Any) -> str:
    cpu = next((getattr(part, "_mode", None) for part in tracker._hardware if hasattr(part, "_mode")), None)
    measured = cpu in MEASURED_CPU_MODES
    parts = [f"cpu {'measured' if measured else 'estimated'} ({cpu or 'unknown'})", "memory estimated"]
    if found.gpu_count:
        parts.append("gpu measured (nvml)")
    return ", ".join(parts)
