"""Tasks by name: the harness's own, unchanged, and the continuation task of this project.

A task whose data are local is a generated file that includes the stock one and replaces nothing but its dataset; its
name ends in `_local`, so that its results are never mistaken for the stock run.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError, SettingError
from moeits.evaluation.local_data import fetch_command, local_data
from moeits.runtime import need

PAPER = ("boolq", "arc_easy", "arc_challenge", "winogrande", "hellaswag")

# Reading the harness's fourteen thousand task files takes a second; the paper's five are found without.
_STOCK_FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
}

# How a task file gives its name; one that is indented is a part of a group.
_TASK_NAME = re.compile(r"""^["']?task["']?[ \t]*:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)

# The harness's own defaults, written down because the drawn examples of a prompt depend on them.
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """One task of the harness with its data, ready to be run."""

    name: str
    harness: Any
    """lm_eval.api.task.Task"""
    files: Mapping[str, str]
    """SHA-256 of each local file by its name in the data folder; empty where the data came from the hub."""


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """The names asked for, each once, `paper` spelled out as the paper's five."""
    asked = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    names = [name.strip() for name in asked if name.strip()]
    return list(dict.fromkeys(each for name in names for each in (PAPER if name == "paper" else (name,))))


def load_tasks(
    names: Iterable[str], *, data_dir: Path | None, num_fewshot: int, scratch: Path
) -> tuple[LoadedTask, ...]:
    """Tasks with their data, from the data folder or else from the hub. `scratch` takes generated files.

    Raises SettingError for a name nobody knows, EvaluationError for data that are not there.
    """
    need("lm_eval", extra="eval")
    catalog = _Catalog()
    loaded: list[tuple[Any, Mapping[str, str]]]
    if data_dir is None:
        loaded = [(harness, {}) for name in names for harness in _from_hub(catalog, name)]
    else:
        loaded = [_from_folder(catalog, name, data_dir, num_fewshot, scratch) for name in names]
    for harness, _ in loaded:
        # As lm_eval.simple_evaluate does: a task that fixes zero shots keeps them.
        if harness.get_config("num_fewshot") != 0:
            harness.set_config(key="num_fewshot", value=num_fewshot)
        harness.set_fewshot_seed(seed=SEEDS["fewshot"])
        _check_examples(harness)
    return tuple(LoadedTask(name=harness.task_name, harness=harness, files=hashes) for harness, hashes in loaded)


def _check_examples(harness: Any) -> None:
    """The examples of the prompts can be drawn. Raises EvaluationError if there are fewer than shots."""
    shots = harness.get_config("num_fewshot")
    there = len(harness.fewshot_docs()) if shots else 0
    if there < shots:
        raise EvaluationError(
            f"{harness.task_name} has {there} examples to draw from, which is not enough for {shots} in each prompt: "
            f"give --num-fewshot {there} or less."
        )


class _Catalog:
    """Where the configuration of each task is."""

    def file(self, name: str) -> Path:
        """The file of one task. Raises SettingError if there is no such task, or if it is a group of tasks."""
        if (path := self.known(name)) is not None:
            return path
        self.check_group(name)
        raise SettingError(f"{name} is a group of tasks, which cannot be given local data: name its tasks one by one.")

    def known(self, name: str) -> Path | None:
        """The file of one task; None if there is no such task, or if it is a group of tasks."""
        if name in OWN:
            return Path(str(files("moeits.evaluation") / OWN[name]))
        if name in _STOCK_FILES and (path := self._harness_tasks / _STOCK_FILES[name]).is_file():
            return path
        return self._written.get(name)

    def check_group(self, name: str) -> None:
        """There is such a group of tasks. Raises SettingError."""
        # The index is asked only about names that are written somewhere: without it a wrong one is known at once.
        if not any(name in text for text in self._texts.values()) or name not in self.all.task_index:
            raise SettingError(self._unknown(name))

    @cached_property
    def all(self) -> Any:
        """The harness's index of all its tasks; slow, so only where it is needed."""
        return need("lm_eval.tasks", extra="eval").TaskManager()

    @cached_property
    def few(self) -> Any:
        """A task manager without an index: it loads files by path."""
        return need("lm_eval.tasks", extra="eval").TaskManager(include_defaults=False)

    @property
    def _harness_tasks(self) -> Path:
        return Path(str(need("lm_eval.tasks", extra="eval").__file__)).parent

    @cached_property
    def _texts(self) -> Mapping[Path, str]:
        """The harness's task files, read but not parsed: a second instead of half a minute."""
        return {path: path.read_text("utf-8", "replace") for path in sorted(self._harness_tasks.rglob("*.yaml"))}

    @cached_property
    def _written(self) -> Mapping[str, Path]:
        """The file of each task whose name is written in one file only, as that of a task."""
        found: dict[str, list[Path]] = {}
        for path, text in self._texts.items():
            for name in _TASK_NAME.findall(text):
                found.setdefault(name, []).append(path)
        return {name: paths[0] for name, paths in found.items() if len(paths) == 1}

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, (*PAPER, *OWN, "paper"), n=1) or difflib.get_close_matches(
            name, self._written, n=1
        )
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"There is no task {name!r}.{hint} Known: paper ({', '.join(PAPER)}), {', '.join(OWN)}, and all tasks of "
            "lm-evaluation-harness (lm-eval ls tasks)."
        )


OWN: Mapping[str, str] = {"continuation": "continuation.yaml"}


def _from_hub(catalog: _Catalog, name: str) -> list[Any]:
    """The tasks a name stands for (one, or those of a group), with the data set that the hub gives."""
    if name in OWN:
        raise EvaluationError(
            f"The task {name} has no data on the hub: give --data-dir FOLDER with FOLDER/{name}/test.jsonl in it."
        )
    file = catalog.known(name)
    try:
        if file is not None:
            return list(catalog.few.load([str(file)])["tasks"].values())
        catalog.check_group(name)
        return list(catalog.all.load([name])["tasks"].values())
    except Exception as error:
        if not _is_unreachable(error):
            raise
        dataset = None if file is None else _stock_config(file).get("dataset_path")
        raise EvaluationError(
            f"The data set of {name}{f' ({dataset})' if dataset else ''} is out of reach here. On a machine that "
            f"reaches the hub: {fetch_command(dataset or 'ITS_DATASET', Path('FOLDER'))}; then bring FOLDER here and "
            "give --data-dir FOLDER."
        ) from None


def _is_unreachable(error: Exception) -> bool:
    """Whether data cannot be loaded because the hub cannot be reached, or does not have them."""
    datasets = need("datasets", extra="eval")
    return isinstance(error, ConnectionError | datasets.exceptions.DatasetNotFoundError | TimeoutError)


def _from_folder(
    catalog: _Catalog, name: str, data_dir: Path, num_fewshot: int, scratch: Path
) -> tuple[Any, Mapping[str, str]]:
    stock_file = catalog.file(name)
    stock = _stock_config(stock_file)
    local = local_data(name, stock, data_dir, num_fewshot)
    overlay = {
        "include": str(stock_file),
        "task": f"{name}_local",
        "tag": None,
        **local.overlay,
        # Nothing prepared from these files stays behind in a cache of the machine.
        "dataset_kwargs": {**local.overlay.get("dataset_kwargs", {}), "cache_dir": str(scratch / "datasets")},
    }
    path = scratch / f"{name}_local.yaml"
    path.write_text(json.dumps(overlay), encoding="utf-8")  # JSON is YAML
    jinja2, datasets = need("jinja2", extra="eval"), need("datasets", extra="eval")
    try:
        # The harness renders the first item here, so a field that is not there shows at once.
        (harness,) = catalog.few.load([str(path)])["tasks"].values()
    except (ValueError, KeyError, jinja2.TemplateError, datasets.exceptions.DatasetGenerationError) as error:
        raise EvaluationError(
            f"The data of {name} in {data_dir} cannot be read as that task needs them ({error}). The fields are those "
            f"of the stock data set, {stock.get('dataset_path')}."
        ) from None
    return harness, local.files


def _stock_config(path: Path) -> dict[str, Any]:
    """A task file with what it includes, its functions unresolved."""
    loader = need("lm_eval.tasks._yaml_loader", extra="eval")
    config: dict[str, Any] = loader.load_yaml(path, resolve_func=False)
    return config
