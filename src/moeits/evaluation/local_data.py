"""Local files in the place of a task's dataset: which files serve which split, and what they hash to.

A data folder holds, for each task, either plain files

    FOLDER/arc_easy/test.jsonl, train.jsonl             or fewshot.jsonl in the place of train.jsonl

with the fields of the stock dataset, or a copy of the stock dataset as `hf download --repo-type dataset` makes it:

    FOLDER/allenai/ai2_arc/...
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """The overlay that makes a task read local files, and the SHA-256 of each file by its name in the data folder."""

    overlay: Mapping[str, Any]
    files: Mapping[str, str]


def local_data(name: str, stock: Mapping[str, Any], data_dir: Path, num_fewshot: int) -> LocalData:
    """What the data folder has for a task whose stock configuration is given.

    Raises EvaluationError if it lacks the file with the items, or with the examples of the shots, or if a row of a file
    lacks a field: the harness would put "None" in its place.
    """
    if not data_dir.is_dir():
        raise EvaluationError(f"There is no data folder {data_dir}.")
    mirror = data_dir / str(stock.get("dataset_path"))
    if not (data_dir / name).is_dir() and mirror.is_dir():
        return LocalData(overlay={"dataset_path": str(mirror.resolve())}, files=_hashes(_data_files(mirror), data_dir))
    splits = _splits(name, stock, data_dir / name, num_fewshot)
    for path in splits.values():
        _check_rows(path)
    overlay = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path.resolve()) for split, path in splits.items()}},
        # A split without a file must not be promised: the harness would ask for it.
        **{key: stock.get(key) if stock.get(key) in splits else None for key in _SPLIT_KEYS},
    }
    return LocalData(overlay=overlay, files=_hashes(splits.values(), data_dir))


_SPLIT_KEYS = ("training_split", "validation_split", "test_split")


def _splits(name: str, stock: Mapping[str, Any], folder: Path, num_fewshot: int) -> dict[str, Path]:
    """The file of each split that has one: first the split's own name, then what else its role may be called."""
    evaluated = stock.get("test_split") or stock.get("validation_split")
    shots_from = (stock.get("fewshot_config") or {}).get("split") or stock.get("fewshot_split")
    roles = {
        evaluated: ("test", "validation"),
        stock.get("training_split"): ("train", "fewshot"),
        shots_from: ("fewshot", "train"),
    }
    found: dict[str, Path] = {}
    for split in dict.fromkeys((evaluated, shots_from, *map(stock.get, _SPLIT_KEYS))):
        if split is not None:
            names = (split, *roles.get(split, ()))
            files = [folder / f"{each}.jsonl" for each in names if (folder / f"{each}.jsonl").is_file()]
            found |= {split: files[0]} if files else {}
    if evaluated not in found:
        raise EvaluationError(
            f"The data folder lacks {name}/test.jsonl, the items of {name}. Put the file there, or the dataset "
            f"{stock.get('dataset_path')} itself: {fetch_command(stock.get('dataset_path'), folder.parent)}"
        )
    if num_fewshot and stock.get("num_fewshot") != 0 and len(found) < 2:
        raise EvaluationError(
            f"The data folder lacks {name}/train.jsonl (or fewshot.jsonl), where the {num_fewshot} examples of each "
            "prompt come from. Put the file there, or evaluate with --num-fewshot 0."
        )
    return found


def _check_rows(path: Path) -> None:
    """Every row is an object with the fields of the first one. Raises EvaluationError."""
    where, fields = f"{path.parent.name}/{path.name}", None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.120}"
                raise EvaluationError(f"{where}, line {number} is not JSON: {why}.") from None
            if not isinstance(row, dict):
                raise EvaluationError(f"{where}, line {number} is a {type(row).__name__}; rows are JSON objects.")
            fields = row.keys() if fields is None else fields
            if lacking := sorted(fields - row.keys()):
                raise EvaluationError(
                    f"{where}, line {number} lacks {' and '.join(map(repr, lacking))}, which the first line has. "
                    "Complete the row, or remove it."
                )


def fetch_command(dataset: Any, folder: Path) -> str:
    """The command that copies a dataset into a data folder on a machine that reaches the hub."""
    if dataset in (None, "json"):
        return "it is made by hand, there is nothing to download"
    return f"hf download --repo-type dataset {dataset} --local-dir {folder}/{dataset}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _data_files(mirror: Path) -> list[Path]:
    inside = (path for path in mirror.rglob("*") if path.is_file() and path.name != "README.md")
    return sorted(path for path in inside if not any(part.startswith(".") for part in path.relative_to(mirror).parts))


def _hashes(paths: Any, data_dir: Path) -> dict[str, str]:
    return {path.relative_to(data_dir).as_posix(): sha256_of(path) for path in paths}
