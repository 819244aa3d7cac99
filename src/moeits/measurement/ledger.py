"""What a run has cost so far: seconds and joules of every stage, one entry each, in the run's own log."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError
from moeits.evidence import write_whole
from moeits.measurement.energy import EnergyMeter, check_country

FORMAT = 1


class Ledger:
    """The entries of a run, kept in a file. An entry is written when its stage ends, also when it fails."""

    def __init__(self, path: Path, *, energy: bool = False, country: str | None = None) -> None:
        """`energy` measures joules as well. Raises SettingError for a country that is none."""
        self._path, self._energy, self._country = path, energy, check_country(country)

    @contextmanager
    def stage(self, name: str, point: str | None = None) -> Iterator[None]:
        """Enter a stage; `point` names the pruned model it is for, None for what serves them all."""
        meter, finished = EnergyMeter(wanted=self._energy, country=self._country), False
        meter.start()
        try:
            yield
            finished = True
        finally:
            self._add({"stage": name, "point": point, "finished": finished, **asdict(meter.stop())})

    def entries(self) -> list[dict[str, Any]]:
        """All entries so far. Raises EvaluationError if the file is broken."""
        if not self._path.exists():
            return []
        try:
            return list(json.loads(self._path.read_text(encoding="utf-8"))["entries"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{self._path} is broken ({error}). Remove it: the ledger begins anew.") from None

    def _add(self, entry: dict[str, Any]) -> None:
        facts = {"format": FORMAT, "kind": "ledger", "entries": [*self.entries(), entry]}
        write_whole(self._path, (json.dumps(facts, indent=1) + "\n").encode())
