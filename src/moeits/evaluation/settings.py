"""What a model is asked in an evaluation, and how it is run meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moeits.errors import SettingError
from moeits.evaluation.generations import PROMPTS
from moeits.evaluation.tasks import task_names
from moeits.runtime import checked_dtype
from moeits.settings import ASKED, EXPERT, at_least, setting

BACKENDS = ("hf", "vllm")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a model is asked: tasks of lm-evaluation-harness, a text, or both."""

    tasks: str | Sequence[str] | None = setting(
        None,
        help="Names of tasks, separated by commas; paper is the paper's five.",
        panel=ASKED,
        shown_default="paper, or none with --perplexity",
    )
    num_fewshot: int = setting(15, help="Examples in each prompt.", panel=ASKED)
    limit: int | None = setting(
        None,
        help="Only the first N items of each task; N documents of a text, evenly spread.",
        panel=ASKED,
        shown_default="all",
    )
    data_dir: str | Path | None = setting(
        None, help="Folder with the tasks' data, instead of the hub (docs/evaluation.md).", panel=ASKED
    )
    perplexity: str | Path | None = setting(
        None, help="A text: documents in the field text of a .jsonl, or any file as one.", panel=ASKED
    )
    window: int | None = setting(
        None,
        help="Tokens of a perplexity window.",
        panel=ASKED,
        shown_default="the model's context, at most 2048",
    )

    parent: str | Path | None = setting(
        None,
        help="The unpruned model: how near to it the other is on the text, KL and equal first choices.",
        panel=ASKED,
        metavar="MODEL",
    )
    generate: int | None = setting(
        None, help="Let a chat model answer N short prompts: how many end, how many loop.", panel=ASKED, metavar="N"
    )

    def __post_init__(self) -> None:
        for name, least in (("num_fewshot", 0), ("limit", 1), ("window", 2), ("generate", 1)):
            at_least(name, getattr(self, name), least)
        if self.generate is not None and self.generate > len(PROMPTS):
            raise SettingError(f"--generate {self.generate} is out of range: there are {len(PROMPTS)} prompts.")
        if not self.names and self.perplexity is None and self.generate is None:
            raise SettingError("There is nothing to evaluate: name --tasks, or give --perplexity TEXT.")
        if self.parent is not None and self.perplexity is None:
            raise SettingError("--parent compares two models on a text: give it with --perplexity TEXT.")

    @property
    def names(self) -> list[str]:
        """Names of the tasks; the paper's five if neither tasks nor a text were named."""
        default = "paper" if self.perplexity is None and self.generate is None else ""
        return task_names(default if self.tasks is None else self.tasks)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is run while it is asked."""

    batch_size: int = setting(40, help="Prompts in one batch.", panel=EXPERT)
    backend: str = setting(
        "hf",
        help="vllm, of what it opens: unequal counts by the plug-in that comes with moeits.",
        panel=EXPERT,
        choices=BACKENDS,
    )
    dtype: str = setting("auto", help="auto (as stored), float32, bfloat16, float16.", panel=EXPERT)
    device: str | None = setting(
        None,
        help="cpu, cuda:0, ... or split: one model over all.",
        panel=EXPERT,
        shown_default="the first accelerator",
    )

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        if self.backend not in BACKENDS:
            raise SettingError(f"There is no backend {self.backend!r}. Known: {', '.join(BACKENDS)}.")
        checked_dtype(self.dtype)
