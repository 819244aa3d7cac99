"""The folder of a healing that is under way, beside the output: what it is the healing of, and Trainer's checkpoints.

It is there from the first step until the healed checkpoint is complete, so that a killed run can go on.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import HealingError, OutputError
from moeits.files import write_whole
from moeits.sizes import format_size

_ADAM_STATES = 2
# What a healing and Trainer put into the folder.
_OURS = re.compile(
    r"run\.json|\.run\.json\..*|checkpoint-\d+|tmp-checkpoint-.*|runs|README\.md|adapter.*|training_args\.bin"
)
# run.json while it is being written.
_UNDER_WAY = ".run.json."
# The best checkpoint, the last one, and the one being written.
_CHECKPOINTS = 3


@dataclass(frozen=True)
class HealingRun:
    """A folder `OUTPUT.healing`."""

    folder: Path

    @classmethod
    def beside(cls, output: Path) -> "HealingRun":
        return cls(output.with_name(output.name + ".healing"))

    def check(self, facts: Mapping[str, Any], *, steps: int, resume: bool, fresh: bool) -> None:
        """Whether a run may begin here, or go on. Raises HealingError if not; nothing is changed.

        Fewer steps than before may be asked for where they are done already: that ends a run early.
        """
        if fresh and not self._is_ours():
            raise HealingError(
                f"{self.folder} is not the folder of a healing, so --fresh does not remove it. Move it, or choose "
                "another --output."
            )
        if fresh or not self.folder.exists():
            if resume and not fresh:
                raise HealingError(f"There is nothing to resume: {self.folder} is not there. Start without --resume.")
            return
        if resume and self._never_began():
            return
        if not resume:
            raise HealingError(
                f"{self.folder} holds an interrupted healing. Go on with --resume, or forget it with --fresh."
            )
        before = self.read()
        for name, value in facts.items():
            if before.get(name) != value:
                raise HealingError(
                    f"{self.folder} holds the healing of {_what(name)}. Resume it with its own settings, or forget it "
                    f"with --fresh.{_difference(before.get(name), value)}"
                )
        if steps != before.get("steps") and not any(step == steps for step, _ in self.checkpoints()):
            done = ", ".join(str(step) for step, _ in self.checkpoints()) or "none"
            raise HealingError(
                f"{self.folder} holds a healing of {before.get('steps')} steps. Resume it with --steps "
                f"{before.get('steps')}, or with the steps of a state that was saved ({done}) to stop there."
            )

    def begin(self, facts: Mapping[str, Any], *, steps: int, fresh: bool) -> None:
        """Make the folder, where there is none to go on in."""
        if fresh:
            self.remove()
        if not self.folder.exists() or self._never_began():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write({**facts, "steps": steps})

    def steps(self) -> int | None:
        """The steps that the run under way was begun with; None if there is none."""
        return self.read().get("steps") if self.folder.exists() and not self._never_began() else None

    def saved_nothing(self) -> bool:
        """Whether a run was interrupted here before its first saved state: to go on is to begin anew."""
        return self.folder.exists() and not self.checkpoints()

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of each complete checkpoint, by step."""
        return sorted(
            (int(folder.name.rpartition("-")[2]), folder)
            for folder in self.folder.glob("checkpoint-*")
            # Trainer writes its state last, so a folder without a whole one was cut off by a kill.
            if _is_json(folder / "trainer_state.json")
        )

    def note(self, **facts: Any) -> None:
        """Keep something for a later resume."""
        self._write({**self.read(), **facts})

    def read(self) -> dict[str, Any]:
        """What is kept. Raises HealingError if the folder holds no run."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise HealingError(f"{self.folder} holds no healing that can be resumed. Forget it with --fresh.") from None

    def remove(self) -> None:
        """Forget the run. A folder that is not one's own stays."""
        if self._is_ours():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self) -> bool:
        """Whether the folder is of a healing, by what is in it: nothing, or run.json and what Trainer writes."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            return False
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        begun = "run.json" in names or all(name.startswith(_UNDER_WAY) for name in names)
        return begun and all(_OURS.fullmatch(name) for name in names)

    def _never_began(self) -> bool:
        """Whether a kill came between the folder and its run.json."""
        return self._is_ours() and not (self.folder / "run.json").exists()

    def check_space(self, trainable: int) -> None:
        """The checkpoints of the run fit on its disk. Raises OutputError."""
        needed = trainable * 4 * (1 + _ADAM_STATES) * _CHECKPOINTS
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise OutputError(
                f"{self.folder.parent} has {format_size(free)} free, but the checkpoints of this training need "
                f"{format_size(needed)}. Make room, choose another --output, or lower --rank."
            )

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_whole(self.folder / "run.json", (json.dumps(facts, indent=2) + "\n").encode())


def _what(name: str) -> str:
    words = {
        "fingerprint": "another checkpoint",
        "data": "other data",
        "held_out": "other held-out data",
        "processes": "another number of processes",
    }
    return words.get(name, f"another {name}")


def _difference(before: Any, now: Any) -> str:
    """Which fields of a recipe differ, in words."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    fields = [f"{name} was {before.get(name)}" for name in now if before.get(name) != now[name]]
    return f" There, {', '.join(fields)}."


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
