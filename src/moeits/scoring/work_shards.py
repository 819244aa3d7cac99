"""A scoring in shards, one for each machine: which layers are whose, and what the evidence of one says of itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeits.errors import EvidenceError, SettingError
from moeits.evidence import SHARD, Evidence
from moeits.settings import SCORING, setting
from moeits.version import __version__


@dataclass(frozen=True, kw_only=True)
class WorkShard:
    """The `number`-th of so many shards, counted from 1."""

    number: int
    of: int

    @classmethod
    def parsed(cls, text: str) -> "WorkShard":
        """From I/N. Raises SettingError."""
        said = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if said is None or not 1 <= int(said[1]) <= int(said[2]):
            raise SettingError(
                f"--shard {text!r:.40} is not one of so many: give I/N, such as 2/8, with I from 1 to N."
            )
        return cls(number=int(said[1]), of=int(said[2]))

    def of_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Its layers, which follow each other; no two shards differ by more than one. Raises SettingError."""
        if self.of > len(layers):
            raise SettingError(
                f"--shard {self} leaves shards without work: the model has {len(layers)} layers with experts. Give at "
                "most as many shards."
            )
        return tuple(layers[len(layers) * (self.number - 1) // self.of : len(layers) * self.number // self.of])

    def facts(self) -> dict[str, Any]:
        """As the settings of evidence keep it, with the version of moeits that scored."""
        return {"number": self.number, "of": self.of, "moeits": __version__}

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


ENGINES = ("threads", "ray")


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Which share of the work is done, and who does it."""

    shard: str | None = setting(
        None,
        help="Score only the I-th of N shares of the layers; moeits gather puts all of them together.",
        panel=SCORING,
        metavar="I/N",
        shown_default="all layers",
    )

    engine: str = setting(
        "threads", help="Who does it: threads here, or a Ray cluster, layer by layer.", panel=SCORING, choices=ENGINES
    )
    address: str | None = setting(
        None,
        help="Of the Ray cluster, as host:port or auto.",
        panel=SCORING,
        shown_default="one of this machine alone",
    )
    device: str | None = setting(
        None,
        help="Count pairs on this device of torch: cuda:0, ... Changes no score.",
        panel=SCORING,
        shown_default="the CPU, without torch",
    )

    def __post_init__(self) -> None:
        self.work_shard()
        if self.device is not None and self.engine == "ray":
            raise SettingError("--device is one of this machine, and --engine ray has others: leave one of them out.")
        if self.engine not in ENGINES:
            raise SettingError(f"--engine {self.engine} is not one of {', '.join(ENGINES)}.")
        if self.address is not None and self.engine != "ray":
            raise SettingError("--address is that of a Ray cluster: give --engine ray too, or leave it out.")

    def work_shard(self) -> WorkShard | None:
        """None for the whole."""
        return None if self.shard is None else WorkShard.parsed(self.shard)


def shard_of(evidence: Evidence, name: str) -> tuple[WorkShard, str]:
    """Which shard some evidence is, and by which version of moeits. Raises EvidenceError where it does not say."""
    said = evidence.settings.get(SHARD)
    if said is None:
        raise EvidenceError(f"{name} is not a shard: give what moeits score --shard wrote.")
    known = said if isinstance(said, Mapping) else {}
    number, of, version = (known.get(each) for each in ("number", "of", "moeits"))
    layers = tuple(evidence.layers)
    if type(number) is int and type(of) is int and isinstance(version, str) and 1 <= number <= of <= len(layers):
        shard = WorkShard(number=number, of=of)
        own = {*shard.of_layers(layers)}
        if all({*by_layer} == own for by_layer in (*filter(None, [evidence.redundancy]), *evidence.signals.values())):
            return shard, version
    raise EvidenceError(f"{name} does not hold the layers of the shard that it says it is. Score that shard again.")
