"""`python -m moeits.demo [FOLDER]`: prune a small model in several ways, repair it in two, and see what was lost.

Every loss stands beside that of random choices of the same size that were treated in the same way. Each step is a
command's own function, called with what is printed after `$`.
"""

import inspect
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import moeits
from moeits import console
from moeits.choosing.pruning_plan import PruningPlan
from moeits.console import plans
from moeits.demo import MODEL, TRAIN, VALID
from moeits.errors import MoeitsError, OutputError
from moeits.evaluation.results import Results
from moeits.run_files import read_sweep

TAUS = (2.0, 1.25, 0.5)
HALF = 1.25
"""Removes about half of the experts. What else is chosen keeps the same number in each layer."""
CONTROLS = 3
"""Random choices of each size. The first of them is healed and refitted too, which takes longer."""
HEALING: dict[str, Any] = {"recipe": "small", "steps": 50}
TOKENS = 8192
RESULTS = "unhealed.json"

Row = tuple[str, ...]

# By this file in it a folder is known to be of an earlier demo, and may be replaced.
MARKER = ".moeits-demo"


def main() -> None:
    """The whole demo; what is wrong is one sentence, as on the command line."""
    try:
        demonstrate(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"))
    except MoeitsError as error:
        console.error(str(error))
        sys.exit(2)


def new_folder(folder: Path) -> None:
    """Make the folder of the demo; what an earlier demo left there is removed. Raises OutputError."""
    try:
        if folder.is_dir() and (folder / MARKER).is_file():
            shutil.rmtree(folder)
        elif os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is of no earlier demo. Remove it, or name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}. Name another folder.") from None


def demonstrate(folder: Path) -> None:
    """The whole demo, into a folder that is replaced if an earlier one made it."""
    new_folder(folder)
    start = time.perf_counter()
    plans.show_inspection(typed(moeits.inspect, MODEL), {})
    demo = Demo(folder)
    demo.work()
    console.out("")
    console.out("Loss in nats per token, on text that the model has not seen:")
    console.out("")
    console.table(("", "experts", "P(down)", "loss", "lost", "lost by a random choice"), demo.rows())
    console.out("")
    console.out(
        "A random choice keeps the same number of experts in each layer and is treated in the same way: mean of "
        f"{CONTROLS} seeds (least to most), one where healed or refitted. Refitting and healing learn from the bundled "
        "text, which the model was trained on and whose sources the judging text shares: elsewhere they may gain less."
    )
    typed(moeits.report, [demo.pruned, demo.refitted], output=folder / "report.html")
    console.out("")
    console.out(f"{time.perf_counter() - start:.0f} seconds; checkpoints, and the page report.html, are in {folder}/")


def typed(stage: Callable[..., Any], what: Path | list[Path], **arguments: Any) -> Any:
    """Show a command as a user would type it, and run its function."""
    words = map(_shown, what if isinstance(what, list) else [what])
    flags = (word for name, value in arguments.items() for word in (f"--{name.replace('_', '-')}", _shown(value)))
    console.out("")
    console.out(f"$ {shlex.join(['moeits', stage.__name__, *words, *flags])}")
    if "progress" not in inspect.signature(stage).parameters:
        return stage(what, **arguments)
    with console.progress() as progress:
        return stage(what, **arguments, progress=progress)


def _shown(value: Any) -> str:
    """A value as it is typed; a path below the working directory without it."""
    below = isinstance(value, Path) and value.is_relative_to(Path.cwd())
    return str(value.relative_to(Path.cwd()) if below else value)


@dataclass(frozen=True)
class Demo:
    """One folder: checkpoints, and two runs for `moeits report`, each with controls of its own."""

    folder: Path

    @property
    def pruned(self) -> Path:
        """The run of what was pruned, and at one tau healed."""
        return self.folder / "pruned"

    @property
    def refitted(self) -> Path:
        """The run of what was refitted."""
        return self.folder / "refitted"

    @property
    def text(self) -> Path:
        """The text that judges."""
        return self.folder / "held-out.jsonl"

    def work(self) -> None:
        """Everything that the table shows."""
        # Every third document is enough to tell the rows apart.
        documents = VALID.read_text(encoding="utf-8").splitlines(keepends=True)[::3]
        self.text.write_text("".join(documents), encoding="utf-8")
        half = self.folder / f"tau-{HALF:g}"
        plan = typed(moeits.simplify, MODEL, tau=HALF, output=half)
        plans.show_plan(plan, {"model": _shown(MODEL), "output": half, "layout": "auto"})
        self._sweep()
        chosen = self._by_reconstruction(like=half / "plan.json")
        self._evaluate(chosen, self.pruned / "reconstruction")
        self._refit(chosen, "reconstruction")
        self._refit(half, "moeits")
        control = self.folder / "random-0"
        typed(moeits.simplify, MODEL, criterion="random", seed=0, like=half / "plan.json", output=control)
        self._refit(control, f"moeits/{control.name}")
        shutil.copytree(self.pruned / "unpruned", self.refitted / "unpruned")

    def rows(self) -> Iterator[Row]:
        """The table: the unpruned model, MoEITS at three values of tau, and what else half of the experts can be."""
        experts = PruningPlan.load(self._points[HALF] / "plan.json").summary["experts_before"]
        yield "unpruned", str(experts), "", f"{self._unpruned:.3f}", "", ""
        for tau, point in self._points.items():
            yield self._row(f"MoEITS, tau {tau:g}", point)
        half, refitted = self._points[HALF], self.refitted / "moeits"
        yield self._row(f"MoEITS, tau {HALF:g}, healed", half, "healed.json")
        yield self._row(f"MoEITS, tau {HALF:g}, refitted", refitted, controls=refitted)
        yield self._row("reconstruction", self.pruned / "reconstruction", controls=half)
        yield self._row("reconstruction, refitted", self.refitted / "reconstruction", controls=refitted)

    # -------------------------------------------------------------------------------------- steps

    def _sweep(self) -> None:
        """Three values of tau from one scoring, each beside random choices; one of them and a random one are healed."""
        asked = {"perplexity": self.text, "dtype": "float32", "control": CONTROLS, "output": self.pruned}
        typed(moeits.sweep, MODEL, tau=",".join(f"{tau:g}" for tau in TAUS), **asked)
        typed(moeits.sweep, MODEL, tau=f"{HALF:g}", heal=TRAIN, **HEALING, **asked)

    def _by_reconstruction(self, like: Path) -> Path:
        """The checkpoint that backward elimination leaves, with as many experts in each layer as a plan."""
        signals, plan, output = (
            self.folder / name for name in ("signals.safetensors", "reconstruction.json", "reconstruction")
        )
        typed(moeits.calibrate, MODEL, tokens=TOKENS, output=signals)
        typed(moeits.plan, signals, criterion="reconstruction", like=like, output=plan)
        typed(moeits.prune, MODEL, plan=plan, output=output)
        return output

    def _refit(self, pruned: Path, name: str) -> None:
        output = pruned.with_name(f"{pruned.name}-refitted")
        typed(moeits.refit, pruned, parent=MODEL, tokens=TOKENS, output=output)
        self._evaluate(output, self.refitted / name)

    def _evaluate(self, checkpoint: Path, point: Path) -> None:
        """A point of a run: who stays, and the loss."""
        point.mkdir(parents=True)
        shutil.copyfile(checkpoint / "plan.json", point / "plan.json")
        typed(moeits.evaluate, checkpoint, perplexity=self.text, dtype="float32", output=point / RESULTS)

    # -------------------------------------------------------------------------------------- rows

    def _row(self, name: str, point: Path, results: str = RESULTS, controls: Path | None = None) -> Row:
        """One line of the table; `controls` is where its random choices are, if not in its own folder."""
        plan = PruningPlan.load(point / "plan.json")
        lost = [_loss(found) - self._unpruned for found in (controls or point).glob(f"random-*/{results}")]
        spread = f" ({min(lost):+.3f} to {max(lost):+.3f})" if len(lost) > 1 else ""
        loss = _loss(point / results)
        return (
            name,
            str(plan.summary["experts_kept"]),
            f"{plan.summary['reduction']:.1%}",
            f"{loss:.3f}",
            f"{loss - self._unpruned:+.3f}",
            f"{statistics.mean(lost):+.3f}{spread}",
        )

    @property
    def _unpruned(self) -> float:
        return _loss(self.pruned / "unpruned" / RESULTS)

    @cached_property
    def _points(self) -> dict[float, Path]:
        """tau -> the folder of its point in the sweep."""
        sweep = read_sweep(self.pruned / "sweep.json")
        folders = {point["tau"]: self.pruned / point["folder"] for point in sweep["points"]}
        return {tau: folders[tau] for tau in TAUS}


def _loss(results: Path) -> float:
    """Nats per token of a held-out text."""
    text = Results.load(results).perplexity
    assert text is not None, "every evaluation of the demo reads a text"
    return text["nats_per_token"]


if __name__ == "__main__":
    main()
