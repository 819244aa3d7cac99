"""Which source a stage reads, and how surely it is told from others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.reading import Checkpoint, Describe
from moeits.checkpoint.streamed import Streamed
from moeits.errors import PlanError, SettingError
from moeits.experts.described import with_family, with_file
from moeits.experts.families import Architecture
from moeits.progress import Progress, silent
from moeits.settings import EXPERT, setting

AUTO, SAMPLED, FULL = VERIFY = ("auto", "sampled", "full")

# Hashing so much takes half a second on one slow core.
ALWAYS_HASHED_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Verifying:
    """What tells the weights of a source from others."""

    verify: str = setting(
        AUTO,
        help="full hashes every byte of the weights, sampled a few of each tensor; auto: full up to 256 MiB, "
        "and wherever the plan has a full hash.",
        panel=EXPERT,
        choices=VERIFY,
    )

    def __post_init__(self) -> None:
        if self.verify not in VERIFY:
            raise SettingError(f"--verify {self.verify} is not one of {', '.join(VERIFY)}.")

    def coverage(self, checkpoint: Checkpoint, progress: Progress = silent) -> Coverage:
        """What evidence of this checkpoint says of its weights."""
        return checkpoint.coverage(full=self.reads_all(checkpoint), progress=progress)

    def reads_all(self, checkpoint: Checkpoint) -> bool:
        """Whether every byte is read where nothing is known of it, or sampled ones."""
        return self.verify == FULL or (self.verify == AUTO and checkpoint.nbytes <= ALWAYS_HASHED_BYTES)

    def check(
        self, planned: Coverage | None, checkpoint: Checkpoint, *, source: str, progress: Progress = silent
    ) -> Coverage:
        """The weights are those that a plan was made for, as far as it can tell. Raises PlanError if not.

        `source` is what the plan calls them.
        """
        known = planned is not None and planned.full
        if self.verify == FULL and not known:
            raise PlanError(
                f"--verify full compares every byte with what the plan was made for, but its fingerprint of {source} "
                "is of sampled bytes. Score with --verify full and plan again, or prune with --verify sampled."
            )
        if not known or self.verify == SAMPLED:
            return checkpoint.coverage()
        found = checkpoint.coverage(full=True, progress=progress)
        if planned is not None and planned.sha256 != found.sha256:
            raise PlanError(
                f"The weights of {checkpoint.source} are not those that the plan was made for: their SHA-256 is "
                f"{str(found.sha256)[:12]}, and that of {source} was {str(planned.sha256)[:12]}. They were changed or "
                "damaged: download them again, or plan again."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Describing:
    """What is known of a source's family, where moeits knows nothing."""

    architecture: Path | None = setting(
        None,
        help="Description of the model's family, where moeits has none: see inspect --explain.",
        panel=EXPERT,
        metavar="FILE",
    )

    def described(
        self,
        model: str | Path | Checkpoint,
        *,
        revision: str | None = None,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        known: Architecture | None = None,
    ) -> Checkpoint:
        """The checkpoint that is named, or given opened, with the description of its family.

        `known` is what another file says of it, which is used where nothing else is known. Raises FamilyError, and what
        `Checkpoint.open` raises.
        """
        if isinstance(model, Checkpoint):
            return model
        return Checkpoint.open(model, revision=revision, check=check, describe=self.describe(known))

    def describe(self, known: Architecture | None = None) -> Describe:
        """What adds the description to a config."""
        if self.architecture is None:
            return partial(with_family, family=known)
        return partial(with_file, table=self.architecture)


@dataclass(frozen=True, kw_only=True)
class Source(Describing):
    """Which version of a source is read."""

    revision: str | None = setting(None, help="Branch, tag or commit of a hub model.", panel=EXPERT)

    def open(
        self,
        model: str | Path | Checkpoint,
        *,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        known: Architecture | None = None,
    ) -> Checkpoint:
        """As `described` does, at the revision that was asked for."""
        return self.described(model, revision=self.revision, check=check, known=known)


@dataclass(frozen=True, kw_only=True)
class Opening(Source, Verifying):
    """A source, where its tensors are read, and how surely it is told from others."""

    stream: bool = setting(
        False,
        help="Of a hub model: read its tensors over the network as they are needed, and download no weights.",
        panel=EXPERT,
    )

    def open(
        self,
        model: str | Path | Checkpoint,
        *,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        known: Architecture | None = None,
    ) -> Checkpoint:
        """As `Source` does; with `stream` nothing of its weights is downloaded."""
        if not self.stream or isinstance(model, Checkpoint):
            return super().open(model, check=check, known=known)
        return Streamed.open(model, revision=self.revision, check=check, describe=self.describe(known))
