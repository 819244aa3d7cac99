"""The folder of a sweep: what is finished in it, so that no finished point is ever repeated.

    RUN/sweep.json                    what was asked, and what each tau leaves
    RUN/evidence.safetensors          the one scoring, with all elimination orders in it
    RUN/ledger.json                   seconds and joules of each stage: the run's own log
    RUN/unpruned/unhealed.json        results of the model as it came
    RUN/experts-678/plan.json         who stays where 678 experts do
    RUN/experts-678/unhealed.json     results of the pruned model, footprint.json what it costs
    RUN/experts-678/healing.json      how it was healed, healed.json the results after that
    RUN/experts-678/random-0/         the control: as many experts in every layer, chosen at random with seed 0

Kept sets of one elimination order are nested, so the number of experts names the set: taus that keep as many share a
folder, and a finer grid of taus finds the points of a coarser one finished.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint.replaceable import remove_checkpoint
from moeits.errors import OutputError, SettingError
from moeits.files import is_artefact, write_whole
from moeits.finished import forget_finished
from moeits.healing.run import HealingRun
from moeits.run_files import read_sweep


@dataclass(frozen=True)
class PointFolder:
    """The folder of one set of kept experts."""

    path: Path
    seed: int | None = None
    """Of a control, a random choice; None where the criterion chose."""

    @property
    def name(self) -> str:
        """What the run calls it: its path within the run."""
        return self.path.name if self.seed is None else f"{self.path.parent.name}/{self.path.name}"

    def control(self, seed: int) -> "PointFolder":
        """The folder of a random choice of as many experts in every layer."""
        return PointFolder(self.path / f"random-{seed}", seed=seed)

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def unhealed(self) -> Path:
        return self.path / "unhealed.json"

    @property
    def footprint(self) -> Path:
        return self.path / "footprint.json"

    @property
    def healing(self) -> Path:
        return self.path / "healing.json"

    @property
    def healed(self) -> Path:
        return self.path / "healed.json"

    def forget(self) -> None:
        """Remove what a sweep made here. What moeits did not make stays, and with it the folder."""
        for control in self.path.glob("random-*"):
            if control.is_dir() and not control.is_symlink():
                PointFolder(control).forget()
        for checkpoint in (self.pruned_checkpoint, self.healed_checkpoint):
            remove_checkpoint(checkpoint)
        HealingRun.beside(self.healed_checkpoint).remove()
        for file in (self.plan, self.unhealed, self.footprint, self.healing, self.healed):
            if is_artefact(file):
                file.unlink()
            forget_finished(file)
        with suppress(OSError):  # something else is in it
            self.path.rmdir()

    @property
    def pruned_checkpoint(self) -> Path:
        """Where the pruned model lies while it is worked on."""
        return self.path / "pruned"

    @property
    def healed_checkpoint(self) -> Path:
        return self.path / "healed"


def is_point(name: str) -> bool:
    """Whether the folder of a point can be called so."""
    return re.fullmatch(r"unpruned|experts-[0-9]+", name) is not None


@dataclass(frozen=True)
class RunFolder:
    """The folder of a sweep over one checkpoint with one set of settings."""

    path: Path

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.json"

    @property
    def evidence(self) -> Path:
        return self.path / "evidence.safetensors"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.json"

    @property
    def unpruned(self) -> PointFolder:
        return PointFolder(self.path / "unpruned")

    def point(self, kept: int, before: int) -> PointFolder:
        """The folder of a number of kept experts; that of the unpruned model where all of them are kept."""
        return self.unpruned if kept == before else PointFolder(self.path / f"experts-{kept}")

    def begin(self, *, fingerprint: str, settings: Mapping[str, Any], fresh: bool) -> dict[str, Any]:
        """Make the folder, or go on in it; returns the settings, with those of finished work that is not asked for now.

        Raises SettingError if it holds a sweep of another checkpoint or of other settings, OutputError if it cannot be
        made.
        """
        if (self.path / "criteria.json").exists():
            raise SettingError(f"{self.path} holds a comparison of criteria. Choose another --output for the sweep.")
        self.make(fresh=fresh)
        return self._go_on(fingerprint, settings) if self.sweep.exists() else dict(settings)

    def make(self, *, fresh: bool) -> None:
        """The folder, empty of what was there if it is to be made anew. Raises OutputError."""
        if (self.path / "config.json").exists():
            raise OutputError(f"{self.path} is a checkpoint. Choose another --output for the run.")
        if fresh:
            self._forget()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror}. Choose another --output.") from None

    def _go_on(self, fingerprint: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        before = read_sweep(self.sweep, error=SettingError)
        if before["fingerprint"] != fingerprint:
            raise SettingError(
                f"{self.path} holds a sweep of another checkpoint ({before['source']}). Choose another --output, or "
                "start again with --fresh."
            )
        known = {"criterion": "moeits", **before["settings"]}  # before 0.1 was released, sweeps knew one criterion
        # What was not asked for before is added to the points; what was asked for differently cannot be mixed.
        both = [name for name in known if name not in OPTIONAL or None not in (known[name], settings[name])]
        differing = [name for name in both if name != "control" and known[name] != settings[name]]
        if differing:
            was = "; ".join(f"{name} was {json.dumps(known[name])}" for name in differing)
            raise SettingError(
                f"{self.path} holds a sweep with other settings ({was}). Choose another --output, or start again with "
                "--fresh."
            )
        together = {name: known.get(name) if value is None else value for name, value in settings.items()}
        return together | {"control": max(known.get("control", 0), settings["control"])}

    def taus(self) -> tuple[float, ...]:
        """The taus of the sweeps that the folder holds so far; none if there is no sweep yet."""
        return (
            tuple(point["tau"] for point in read_sweep(self.sweep, error=SettingError)["points"])
            if self.sweep.exists()
            else ()
        )

    def is_point(self, name: str) -> bool:
        """Whether a folder of the run that is called so is that of a point."""
        return is_point(name)

    @property
    def records(self) -> tuple[Path, ...]:
        """The files of the run itself."""
        return self.sweep, self.evidence, self.ledger

    def folder_of(self, name: str) -> PointFolder:
        """The folder of a point."""
        return PointFolder(self.path / name)

    def check_source(self, source: Path) -> None:
        """Nothing of the run comes to lie in the model that is swept. Raises OutputError."""
        own, run = source.resolve(), self.path.resolve()
        inside = own.relative_to(run).parts if run in own.parents else ()
        if own in run.parents or (inside and self.is_point(inside[0])):
            raise OutputError(
                f"--output {self.path} would write into the source {source}, which is never touched. Choose another "
                "--output."
            )

    def _forget(self) -> None:
        """Remove what sweeps wrote here, each known by its own mark, and nothing else."""
        for folder in self.path.glob("*") if self.path.is_dir() else ():
            if self.is_point(folder.name) and folder.is_dir() and not folder.is_symlink():
                self.folder_of(folder.name).forget()
        for file in self.records:
            if file.exists() and not is_artefact(file):
                raise OutputError(
                    f"{file} is not a file that moeits wrote, so --fresh does not remove it. Move it, or choose "
                    "another --output."
                )
            file.unlink(missing_ok=True)

    def save(self, facts: Mapping[str, Any]) -> None:
        """Write the run's own file, all or nothing."""
        write_whole(self.records[0], (json.dumps(facts, indent=1) + "\n").encode())


# Settings of work that a sweep may do without.
OPTIONAL = ("evaluation", "healing", "measuring")
