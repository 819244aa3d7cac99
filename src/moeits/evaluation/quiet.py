"""The harness and the libraries below it, silent: the library never prints, and progress has its own way."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from moeits.runtime import need

# One warning per prompt that is cut, among others: those are counted instead.
_LOGGERS = ("lm_eval", "lm-eval", "datasets", "transformers", "accelerate")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged, and no progress bar is drawn, until the end of the block."""
    from unittest import mock  # 60 ms, which no other command should wait for

    datasets = need("datasets", extra="eval")
    harness = need("lm_eval.api.task", extra="eval")
    bars = need("transformers", extra="eval").utils.logging
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    had_bars, had_model_bars = datasets.are_progress_bars_disabled(), bars.is_progress_bar_enabled()
    with ExitStack() as restore:
        restore.enter_context(mock.patch.object(harness, "tqdm", partial(harness.tqdm, disable=True)))
        for logger, level in zip(loggers, levels, strict=True):
            restore.callback(logger.setLevel, level)
            logger.setLevel(logging.ERROR)
        if not had_bars:
            datasets.disable_progress_bars()
            restore.callback(datasets.enable_progress_bars)
        if had_model_bars:
            bars.disable_progress_bar()
            restore.callback(bars.enable_progress_bar)
        yield
