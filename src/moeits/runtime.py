"""The only door to torch and transformers: a pruned checkpoint in the stock model class."""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from moeits.checkpoint import hub
from moeits.checkpoint.reading import read_json
from moeits.errors import CheckpointError, MissingExtra, SettingError
from moeits.experts.layout import per_layer_config
from moeits.surgery.pruned_config import class_name

# What a model may be loaded in; auto is what its files have.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(path: str | Path, **kwargs: Any) -> Any:
    """The stock transformers model of a checkpoint, whether its layers keep equal counts or not.

    `path` is a folder, or a hub id (with `revision`). Other keyword arguments (dtype, device_map, ...) go to
    `from_pretrained`. Code that a checkpoint brings along is never run, so `trust_remote_code` is no argument. Raises
    MissingExtra without torch and transformers, CheckpointError if transformers has no such class.
    """
    if "trust_remote_code" in kwargs:
        raise SettingError("moeits.load runs no code of a checkpoint, so leave trust_remote_code out.")
    transformers = need("transformers", extra="load")
    need("torch", extra="load")
    folder = Path(path) if Path(path).is_dir() else hub.download(str(path), kwargs.pop("revision", None))[0]
    config = read_json(folder / "config.json")
    if not per_layer_config(config):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **kwargs)
    from moeits.modeling_moeits import per_layer_class

    name = class_name(config)
    stock = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"This transformers has no model class {name}, which {path} was made for. Update transformers."
        )
    return per_layer_class(stock).from_pretrained(folder, **kwargs)


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency. Raises MissingExtra, naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs {error.name or module}, which is not installed: pip install 'moeits[{extra}]'"
        ) from None


@contextmanager
def quiet(*others: str) -> Iterator[None]:
    """transformers and what is below it, and `others`, log errors only and draw no bars, until the end of the block.

    The library never prints, and progress has its own way.
    """
    bars = need("transformers", extra="load").utils.logging
    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate", *others)]
    with ExitStack() as restore:
        for logger in loggers:
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            restore.callback(bars.enable_progress_bar)
        yield


def processes() -> int:
    """How many processes share the work, as `accelerate launch` and torchrun say. Raises SettingError."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if not count.isdecimal() or int(count) < 1:
        raise SettingError(f"WORLD_SIZE={count} makes no sense: it is how many processes a launcher has started.")
    return int(count)


def checked_dtype(name: str, known: tuple[str, ...] = DTYPES) -> str:
    """A dtype by name, if it is one that models can be run in. Raises SettingError."""
    if name not in known:
        raise SettingError(f"There is no dtype {name!r} here. Known: {', '.join(known)}.")
    return name


def checked_device(name: str | None) -> str:
    """A device of torch by name: the one asked for, else the first accelerator, else the CPU. Raises SettingError."""
    torch = need("torch", extra="load")
    if name is None:
        return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name
