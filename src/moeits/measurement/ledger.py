"""What a run has cost so far: seconds, joules and peak memory of every stage, one entry each, in the run's own log."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeits.files import write_whole
from moeits.measurement.energy import EnergyMeter, check_country
from moeits.measurement.memory import forget_peak, peak_bytes
from moeits.run_files import LedgerEntry, LedgerFile, read_file

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
        its_own = forget_peak()
        meter.start()
        try:
            yield
            finished = True
        finally:
            peak = peak_bytes() if its_own else None
            spent = {"peak_bytes": peak, **asdict(meter.stop())}
            self._add({"stage": name, "point": point, "finished": finished, **spent})

    def entries(self) -> list[LedgerEntry]:
        """All entries so far. Raises EvaluationError if the file is broken."""
        if not self._path.exists():
            return []
        return read_file(self._path, LedgerFile, what="a ledger that moeits wrote")["entries"]

    def _add(self, entry: Mapping[str, Any]) -> None:
        facts = {"format": FORMAT, "kind": "ledger", "entries": [*self.entries(), entry]}
        write_whole(self._path, (json.dumps(facts, indent=1) + "\n").encode())
