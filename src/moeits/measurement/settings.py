"""How a model is run while its cost is measured."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from moeits.errors import SettingError
from moeits.measurement.energy import check_country
from moeits.runtime import checked_dtype
from moeits.settings import COST, EXPERT, at_least, setting


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the model does while it is measured, and by what its energy is counted."""

    run: bool = setting(True, help="Load the model and run it; else its files alone.", panel=COST, negatable=True)
    prompt_tokens: int = setting(128, help="Length of the prompt, in random tokens.", panel=COST)
    new_tokens: int = setting(32, help="How many tokens are generated after it.", panel=COST)
    repeats: int = setting(5, help="How often each speed is measured.", panel=COST)
    energy: bool = setting(True, help="Measure energy, by codecarbon.", panel=COST, negatable=True)
    energy_seconds: float = setting(5.0, help="Generate at least this long while energy is counted.", panel=COST)
    country: str | None = setting(
        None, help="Grid the electricity comes from (ISO code, such as ESP): adds the CO2.", panel=COST
    )
    dtype: str = setting("auto", help="auto (as stored), float32, bfloat16, float16.", panel=EXPERT)
    device: str | None = setting(
        None,
        help="cpu, cuda:0, ...",
        panel=EXPERT,
        shown_default="the first accelerator",
    )

    def __post_init__(self) -> None:
        if not 0 < self.energy_seconds < inf:
            raise SettingError(f"--energy-seconds {self.energy_seconds:g} is out of range: give a number above 0.")
        check_country(self.country)
        checked_dtype(self.dtype)
        for name in ("prompt_tokens", "new_tokens", "repeats") if self.run else ():
            at_least(name, getattr(self, name), 1)

    @property
    def request(self) -> dict[str, Any]:
        """All of it as the JSON value that the measuring process is given."""
        return {**asdict(self), "country": check_country(self.country)}
