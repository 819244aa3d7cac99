"""What a model is watched on, and what that may take of the machine."""

from dataclasses import dataclass, fields

from moeits.errors import SettingError
from moeits.settings import EXPERT, OUTPUT, WHAT, same_as, setting
from moeits.signals.settings import Resources
from moeits.weighing import source_and_weight

BUNDLED = "bundled"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Where the tokens come from, and how many there are."""

    data: str = setting(
        BUNDLED,
        help="bundled (public-domain text), self (the model writes its own), texts (.jsonl); or several, by commas, "
        "which count alike, or by weights: chat.jsonl:3,code.jsonl:1.",
        metavar="bundled|self|FILE",
    )
    tokens: int = setting(32768, help="Tokens to calibrate or fit on.")
    held_out: int = setting(8192, help="Further tokens, by which settings are chosen and the result is judged.")
    window: int = setting(256, help="Tokens of a window; at most the model's context.")
    seed: int = setting(0, help="Seed of what is drawn: documents, what the model writes, sets that are searched for.")

    def __post_init__(self) -> None:
        for name, least in (("window", 8), ("tokens", 256), ("held_out", 256)):
            value = getattr(self, name)
            if not least <= value <= 10**9:
                flag = "--" + name.replace("_", "-")
                raise SettingError(f"{flag} {str(value)[:40]} is out of range: give {least} or more.")
        if self.seed < 0:
            raise SettingError(f"--seed {str(self.seed)[:40]} is out of range: give 0 or more.")
        if not self.sources():
            raise SettingError("--data names no source: it is bundled, self, a .jsonl, or several separated by commas.")

    def sources(self) -> tuple[str, ...]:
        """The sources, in the order in which they were given."""
        return tuple(self._weighed())

    @property
    def weights(self) -> tuple[float, ...]:
        """What each source counts: its part of the tokens. Nothing where no weight was given, and all count alike."""
        weighed = self._weighed().values()
        return tuple(weight or 1.0 for weight in weighed) if any(weighed) else ()

    def _weighed(self) -> dict[str, float | None]:
        """Source -> its weight, if one was given. Raises SettingError for a weight that cannot be."""
        weighed: dict[str, float | None] = {}
        for item in filter(None, map(str.strip, str(self.data).split(","))):
            source, weight = source_and_weight(item)
            if weighed.setdefault(source, weight) != weight:
                raise SettingError(f"--data {item[:60]} has another weight before.")
        return weighed


def writing_itself(texts: Tokens) -> tuple[str, ...]:
    """A sentence where the model would have to write its text first."""
    said = "The model writes its own text first (--data self): how long that takes is not in the seconds."
    return (said,) if "self" in texts.sources() else ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a pass over the layers may take."""

    memory: str | int = setting(
        "4GiB",
        help="For what grows with the tokens, beside the weights that are run; more is on disk, beside the output.",
        panel=EXPERT,
        metavar="SIZE",
    )
    device: str | None = setting(None, help="cpu, cuda:0, ...", panel=EXPERT, shown_default="the first accelerator")


@dataclass(frozen=True, kw_only=True)
class Also:
    """What calibrating keeps beside the signals of single experts."""

    mean_outputs: bool = setting(
        False, help="Also keep each expert's mean output, E x H numbers a layer.", negatable=True
    )
    input_norms: bool = setting(
        False,
        help="Also keep the norms of each expert's inputs, for --edit mask: 2 E (H + I) a layer.",
        negatable=True,
    )
    rounding_errors: bool = setting(
        False,
        help="Also try each expert with weights of 1 to 4 bits, for --edit quantize.",
        negatable=True,
    )

    specialists: bool = setting(
        False,
        help="Also choose generalists and specialists of domains, for --criterion mop: E x E a layer.",
        negatable=True,
    )

    @property
    def names(self) -> set[str]:
        """Those that were asked for."""
        return {each.name for each in fields(self) if getattr(self, each.name)}


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What the stages of a line may take: what scores as `score`, what runs layers as `calibrate` and `refit`."""

    threads: int | None = same_as(Resources, "threads")
    memory: str | int | None = same_as(
        Resources,
        "memory",
        default=None,
        help="Bound on the weights held at once by a scoring; where layers are run, on what grows with the tokens.",
        shown_default=f"{Resources.memory} for a scoring, {Machine.memory} where layers are run",
    )

    def __post_init__(self) -> None:
        _ = self.scoring

    @property
    def scoring(self) -> Resources:
        """Of the scoring."""
        return Resources(threads=self.threads, **({} if self.memory is None else {"memory": self.memory}))

    @property
    def watching(self) -> Machine:
        """Of a pass over the layers."""
        return Machine() if self.memory is None else Machine(memory=self.memory)


@dataclass(frozen=True, kw_only=True)
class Watching:
    """Of `simplify`: on what tokens experts are watched and refitted, and whether a model that fits is copied."""

    refit: bool = setting(False, help="Refit the kept experts' down projections in closed form.", panel=WHAT)
    data: str = setting(
        BUNDLED,
        help="For --refit, and for criteria that watch experts: bundled, self, or texts (.jsonl).",
        metavar="bundled|self|FILE",
    )
    tokens: int = setting(32768, help="How many tokens of it.")
    held_out: int = same_as(Tokens, "held_out", panel=EXPERT)
    window: int = same_as(Tokens, "window", panel=EXPERT)
    force: bool = setting(False, help="Write a copy also where no expert has to go.", panel=OUTPUT)

    def texts(self, seed: int) -> Tokens:
        """The tokens."""
        return Tokens(data=self.data, tokens=self.tokens, held_out=self.held_out, window=self.window, seed=seed)
