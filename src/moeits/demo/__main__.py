"""`python -m moeits.demo [FOLDER]`: inspect, simplify at three values of tau, load, and see what was lost.

Every loss stands beside its controls: the unpruned model, and as many experts chosen at random.
"""

import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import moeits
from moeits import console
from moeits.console import plans
from moeits.demo import MODEL, VALID
from moeits.evaluation.perplexity import Text, perplexity_of, read_text
from moeits.progress import silent
from moeits.runtime import need

TAUS = (2.0, 1.25, 0.5)
RANDOM_SEEDS = (0, 1, 2)
WINDOW = 512


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    if folder.exists():
        shutil.rmtree(folder)
    start = time.perf_counter()
    console.out(f"$ moeits inspect {MODEL.name}")
    plans.show_inspection(moeits.inspect(MODEL), {})
    unpruned = _loss(MODEL)
    rows = [("unpruned", "128", "", f"{unpruned:.3f}", "", "")]
    for tau in TAUS:
        rows.append(_simplified(folder, tau, unpruned))
    console.out("\nValidation loss in nats per token, on text that the model has not seen:\n")
    console.table(("", "experts", "P(down)", "loss", "lost", "lost by a random choice"), rows)
    console.out(
        f"\nA random choice keeps as many experts in each layer; mean of {len(RANDOM_SEEDS)} seeds (least to most)."
        f"\n{time.perf_counter() - start:.0f} seconds. The checkpoints are in {folder}/."
    )


def _simplified(folder: Path, tau: float, unpruned: float) -> tuple[str, ...]:
    """Simplify at one tau, load the result and three random controls of the same counts."""
    name = f"tau-{tau:g}"
    console.out(f"\n$ moeits simplify {MODEL.name} --tau {tau:g} --output {folder / name}")
    with console.progress() as progress:
        plan = moeits.simplify(MODEL, tau=tau, output=folder / name, progress=progress)
    plans.show_plan(plan, {"output": folder / name})
    lost = _loss(folder / name) - unpruned
    controls = []
    for seed in RANDOM_SEEDS:
        control = folder / f"{name}-random-{seed}"
        moeits.simplify(MODEL, criterion="random", like=plan, seed=seed, output=control)
        controls.append(_loss(control) - unpruned)
    spread = f"{statistics.mean(controls):+.3f} ({min(controls):+.3f} to {max(controls):+.3f})"
    kept, share = plan.summary["experts_kept"], plan.summary["reduction"]
    return f"tau {tau:g}", str(kept), f"{share:.1%}", f"{unpruned + lost:.3f}", f"{lost:+.3f}", spread


def _loss(checkpoint: Path) -> float:
    """Nats per token of the held-out text."""
    transformers = need("transformers", extra="load")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Many CPUs compute slowly in bfloat16.
    model = moeits.load(checkpoint, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = perplexity_of(model, tokenizer, _text(), window=WINDOW, progress=silent)
    return float(found["row"]["nats_per_token"])


def _text() -> Text:
    """Every second document of the held-out text, which is enough to tell the rows apart."""
    text = read_text(VALID)
    return replace(text, documents=text.documents[::2])


if __name__ == "__main__":
    main()
