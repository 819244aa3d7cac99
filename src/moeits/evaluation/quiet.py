"""The harness and the libraries below it, silent."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from moeits import runtime
from moeits.runtime import need

# One warning per prompt that is cut, among others: those are counted instead.
_LOGGERS = ("lm_eval", "lm-eval", "datasets")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged, and no progress bar is drawn, until the end of the block."""
    datasets = need("datasets", extra="eval")
    harness: Any = need("lm_eval.api.task", extra="eval")
    with runtime.quiet(*_LOGGERS), ExitStack() as restore:
        # It asks nobody whether a bar is wanted.
        restore.callback(setattr, harness, "tqdm", harness.tqdm)
        harness.tqdm = partial(harness.tqdm, disable=True)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            restore.callback(datasets.enable_progress_bars)
        yield
