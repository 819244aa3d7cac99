"""What is tried, and on what."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moeits.choosing.criteria import CRITERIA, criterion_named
from moeits.choosing.settings import Choice, finite, numbers, share
from moeits.errors import SettingError
from moeits.evaluation.settings import Inference, Questions
from moeits.settings import HEALING, POINTS, WHAT, same_as, setting
from moeits.sweeping.settings import PointSettings

# Other documents than those of the bundled text that is fitted on.
BUNDLED_HELD_OUT = Path(__file__).parents[1] / "demo" / "valid.jsonl"

_MOST_SIZES = 100
_EXAMPLE = "0.125:0.75:0.125"


@dataclass(frozen=True, kw_only=True)
class Forecasting:
    """Which sizes are looked at, and when one is called safe."""

    reductions: str = setting(
        _EXAMPLE,
        help="Shares of the routed-expert parameters: FIRST:LAST:STEP, or a list such as 25%,50%.",
        panel=WHAT,
        metavar="SHARES",
    )
    criterion: str = setting(
        "reconstruction",
        help="How experts are ranked for removal; c-gnn is reconstructed from an abstract.",
        panel=WHAT,
        choices=tuple(each.name for each in CRITERIA),
    )
    judge: str | None = setting(
        None,
        help="Text that judges, instead of a part of --data: bundled, or a .jsonl.",
        panel=WHAT,
        metavar="bundled|FILE",
        shown_default="bundled where --data is self alone",
    )
    budget: float = setting(
        0.05, help="A size is called safe while the loss rises by less, in nats per token.", panel=WHAT
    )

    def __post_init__(self) -> None:
        criterion_named(self.criterion)
        if not 0 < finite(self.budget, "--budget") <= 100:
            raise SettingError(f"--budget {self.budget:g} is out of range: it is above 0, in nats per token.")
        if not self.shares:
            raise SettingError(f"--reductions names no size: write {_EXAMPLE}, or a list such as 25%,50%.")

    @property
    def shares(self) -> tuple[float, ...]:
        """Ascending, each once."""
        return _between(numbers(self.reductions, "--reductions", most=_MOST_SIZES, example=_EXAMPLE))


def _between(texts: Iterable[str]) -> tuple[float, ...]:
    found = sorted({share(text, "--reductions") for text in texts})
    for value in found:
        if not 0 < value < 1:
            raise SettingError(f"--reductions {value:g} is out of range: each is above 0 and below 1.")
    return tuple(found)


STATES = ("pruned", "refitted", "healed", "refitted, healed")
_REFIT = ("no", "yes", "both")
_MOST_SEEDS = 1000


def _all() -> list[str]:
    """As `--criteria` has them; `order` is another tool's answer, and has to be given."""
    return [f"{each.name}:8" if each.needs_seed else each.name for each in CRITERIA if each.name != "order"]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Which criteria are compared at which size, and how each is judged."""

    keep: str = setting("0.5", help="Share of the experts that each layer keeps: 0.5 or 50%.", panel=WHAT)
    criteria: str = setting(
        "moeits,chance-corrected,random:8,reap,reconstruction",
        help="Criteria to compare, separated by commas, or all; random:8 is random with 8 seeds.",
        panel=WHAT,
        metavar="NAME,NAME",
    )
    refit: str = setting("both", help="Refit every choice, none, or show both.", panel=WHAT, choices=_REFIT)
    min_experts: int | None = same_as(Choice, "min_experts")
    perplexity: str | Path | None = same_as(Questions, "perplexity", panel=POINTS, shown_default="bundled text")
    limit: int | None = setting(None, help="Only N documents of it, evenly spread.", panel=POINTS, shown_default="all")
    dtype: str = same_as(Inference, "dtype", default="float32")
    heal: str | Path | None = setting(
        None, help="Heal every choice on these data too, of the random ones the first.", panel=HEALING, metavar="DATA"
    )
    recipe: str = same_as(PointSettings, "recipe", default="small")
    steps: int | None = same_as(PointSettings, "steps")
    energy: bool = same_as(PointSettings, "energy")
    country: str | None = same_as(PointSettings, "country")

    def __post_init__(self) -> None:
        if not 0 < share(self.keep, "--keep") < 1:
            raise SettingError(f"--keep {self.keep} is out of range: it is above 0 and below 1.")
        if self.refit not in _REFIT:
            raise SettingError(f"--refit {self.refit} is not one of {', '.join(_REFIT)}.")
        if not self.entrants:
            raise SettingError("--criteria names no criterion: write reap,reconstruction,random:8, say.")
        _ = self.points

    @property
    def reduction(self) -> float:
        """The share that goes."""
        return 1 - share(self.keep, "--keep")

    @property
    def entrants(self) -> tuple[tuple[str, int | None], ...]:
        """Criterion and seed, in the order asked for; a seed only where the choice is random. Raises SettingError.

        "all" is every criterion that a model answers by itself, and random choices of eight seeds.
        """
        found: list[tuple[str, int | None]] = []
        asked = [name for name in map(str.strip, self.criteria.split(",")) if name]
        for item in [each for name in asked for each in (_all() if name == "all" else [name])]:
            name, _, seeds = item.partition(":")
            if not criterion_named(name).needs_seed:
                if seeds:
                    raise SettingError(f"--criteria {item[:60]}: {name} is not random, so it takes no seeds.")
                found.append((name, None))
                continue
            count = finite(seeds or 1, f"--criteria {name}")
            if not 1 <= count <= _MOST_SEEDS or count != int(count):
                raise SettingError(f"--criteria {item[:60]} is out of range: give 1 to {_MOST_SEEDS} seeds.")
            found += [(name, seed) for seed in range(int(count))]
        return tuple(dict.fromkeys(found))

    @property
    def points(self) -> PointSettings:
        """The work at every row, as a sweep has it at every point. Raises SettingError."""
        return PointSettings(
            perplexity=self.perplexity or BUNDLED_HELD_OUT,
            limit=self.limit,
            dtype=self.dtype,
            heal=self.heal,
            recipe=self.recipe,
            steps=self.steps,
            energy=self.energy,
            country=self.country,
        )
