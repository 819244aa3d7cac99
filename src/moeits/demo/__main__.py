"""`python -m moeits.demo [FOLDER]`: inspect, simplify at three values of tau, load, heal, and see what was lost.

Losses of pruned models are beside the unpruned model and random choices of the same size; docs/healing.md
has the controls of the healed one.
"""

import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import moeits
from moeits import console
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.console import plans
from moeits.demo import MODEL, TRAIN, VALID
from moeits.errors import MoeitsError, OutputError
from moeits.evaluation.perplexity import Text, perplexity_of, read_text
from moeits.progress import silent
from moeits.runtime import load_tokenizer, need

TAUS = (2.0, 1.25, 0.5)
HEALED_TAU = 1.25
HEALING_STEPS = 100
RANDOM_SEEDS = (0, 1, 2)
WINDOW = 512

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
    found = moeits.inspect(MODEL)
    console.out(f"$ moeits inspect {MODEL.name}")
    plans.show_inspection(found, {})
    unpruned = _loss(MODEL)
    rows: list[tuple[str, ...]] = [
        ("unpruned", str(sum(row.experts for row in found.layers)), "", f"{unpruned:.3f}", "", "")
    ]
    for tau in TAUS:
        rows += _simplified(folder, tau, unpruned)
    console.out("")
    console.out("Validation loss in nats per token, on text that the model has not seen:")
    console.out("")
    console.table(("", "experts", "P(down)", "loss", "lost", "lost by a random choice"), rows)
    console.out("")
    console.out(
        f"A random choice keeps the same number in each layer: mean of {len(RANDOM_SEEDS)} seeds (least to most)."
        " Healing trains on text like that of the validation; docs/healing.md has its control, the unpruned model"
        " trained the same way."
    )
    _report(folder)
    console.out(f"{time.perf_counter() - start:.0f} seconds; the checkpoints are in {folder}/")


def _simplified(folder: Path, tau: float, unpruned: float) -> list[tuple[str, ...]]:
    """Simplify at one tau, load the result and its random controls; at one tau heal it too."""
    output = folder / f"tau-{tau:g}"
    console.out("")
    console.out(f"$ moeits simplify {MODEL.name} --tau {tau:g} --output {output}")
    with console.progress() as progress:
        plan = moeits.simplify(MODEL, tau=tau, output=output, progress=progress)
    plans.show_plan(plan, {"output": output})
    controls = [_random_loss(output.with_name(f"{output.name}-random-{seed}"), plan, seed) for seed in RANDOM_SEEDS]
    lost = [control - unpruned for control in controls]
    spread = f"{statistics.mean(lost):+.3f} ({min(lost):+.3f} to {max(lost):+.3f})"
    rows = [_row(f"tau {tau:g}", plan, _loss(output), unpruned, spread)]
    if tau == HEALED_TAU:
        rows.append(_row(f"tau {tau:g}, healed", plan, _healed_loss(output), unpruned, ""))
    return rows


def _row(name: str, plan: PruningPlan, loss: float, unpruned: float, control: str) -> tuple[str, ...]:
    kept, share = plan.summary["experts_kept"], plan.summary["reduction"]
    return name, str(kept), f"{share:.1%}", f"{loss:.3f}", f"{loss - unpruned:+.3f}", control


def _random_loss(output: Path, plan: PruningPlan, seed: int) -> float:
    moeits.simplify(MODEL, criterion="random", like=plan, seed=seed, output=output)
    return _loss(output)


def _healed_loss(pruned: Path) -> float:
    output = pruned.with_name(f"{pruned.name}-healed")
    console.out("")
    console.out(f"$ moeits heal {pruned} --data train.jsonl --recipe small --steps {HEALING_STEPS} --output {output}")
    with console.progress() as progress:
        moeits.heal(
            pruned, data=TRAIN, valid=VALID, recipe="small", steps=HEALING_STEPS, output=output, progress=progress
        )
    return _loss(output)


def _report(folder: Path) -> None:
    """One page of the whole: every tau from one scoring, and how the healing went."""
    run = folder / "run"
    with console.progress() as progress:
        moeits.sweep(MODEL, tau=",".join(f"{tau:g}" for tau in TAUS), output=run, progress=progress)
    healed = folder / f"tau-{HEALED_TAU:g}-healed"
    kept = PruningPlan.load(healed / "plan.json").summary["experts_kept"]
    shutil.copyfile(healed / "healing.json", run / f"experts-{kept}" / "healing.json")
    moeits.report(run, output=folder / "report.html")
    console.out("")
    console.out(f"report: {folder / 'report.html'}")


def _loss(checkpoint: Path) -> float:
    """Nats per token of the held-out text."""
    transformers = need("transformers", extra="load")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Many CPUs compute slowly in bfloat16.
    model = moeits.load(checkpoint, dtype="float32").eval()
    tokenizer = load_tokenizer(Checkpoint.open(checkpoint))
    found = perplexity_of(model, tokenizer, _text(), window=WINDOW, progress=silent)
    return float(found["row"]["nats_per_token"])


def _text() -> Text:
    """Every third document of the held-out text, which is enough to tell the rows apart."""
    text = read_text(VALID)
    return replace(text, documents=text.documents[::3])


if __name__ == "__main__":
    main()
