"""Results, and what else lies in the folder of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import moeits
from tests import runs
from tests.fuzzing.mutations import as_json, mutated_bytes, mutated_json
from tests.fuzzing.parser import Parser, toy


def _few_items(accuracy: float) -> dict[str, Any]:
    """Results of eight items a task, so that a mutation often falls on something else than an item."""
    value = runs.results(accuracy, parameters=1000, nbytes=2000)
    value["samples"] = {
        task: {name: column[:8] for name, column in columns.items()} for task, columns in value["samples"].items()
    }
    return value


def results(folder: Path) -> Parser:
    value, other = _few_items(0.5), folder / "other.json"
    runs.write(other, _few_items(0.6))
    path = folder / "results.json"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        compared = moeits.compare(path, other, resamples=100)
        json.dumps(compared.facts())

    return Parser("results.json", (as_json(value),), lambda random: mutated_json(value, random), feed)


def _small_run(folder: Path) -> Path:
    """One point of a sweep with everything that a report shows."""
    run = folder / "run"
    runs.swept(toy(folder / "model"), run, "1")
    runs.evaluated(run)
    for path in run.rglob("unhealed.json"):
        runs.write(path, _few_items(0.6))
    for path in run.rglob("healed.json"):
        runs.write(path, _few_items(0.5))
    return run


def file_of_a_run(name: str, file: str) -> Callable[[Path], Parser]:
    def make(folder: Path) -> Parser:
        run = _small_run(folder)
        path = next(run.rglob(file))
        value = json.loads(path.read_text())
        for other in run.rglob("healed.json"):
            other.unlink()
        for other in run.rglob("unhealed.json"):
            other.unlink()

        def feed(content: bytes) -> None:
            path.write_bytes(content)
            moeits.report(run, output=folder / "report.md", format="md")

        return Parser(name, (as_json(value),), lambda random: mutated_json(value, random), feed)

    return make


def run_folder(folder: Path) -> Parser:
    run = _small_run(folder)
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}

    def mutant(random: Random) -> bytes:
        name = random.choice(list(files))
        if random.random() < 0.05:
            return name.encode()
        damaged = (
            mutated_bytes
            if name.endswith(".safetensors")
            else lambda text, random: mutated_json(json.loads(text), random)
        )
        return name.encode() + b"\n" + damaged(files[name], random)

    def feed(content: bytes) -> None:
        """Name of a file and what is in it; a name alone says that the file is missing."""
        name, given, text = content.partition(b"\n")
        path = run / name.decode()
        try:
            path.write_bytes(text) if given else path.unlink()
            moeits.report(run, output=folder / "report.md", format="md")
        finally:
            path.write_bytes(files[name.decode()])

    valid = tuple(name.encode() + b"\n" + text for name, text in files.items())
    return Parser("run folder, as Markdown", valid, mutant, feed)
