"""The paper's Figure 2 on one of the shared models: what tau costs, what healing gives back, and what chance does.

    OMP_NUM_THREADS=1 python -m experiments.figure_2 --run figure-2      about 45 minutes; goes on after a stop

Writes the run's folder, `docs/figure_2.svg` for the README, and prints the table.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import moeits
from moeits.report_page.artefacts import read_run
from moeits.report_page.drawing import standalone
from moeits.report_page.markdown import tables
from moeits.report_page.result_sections import figure_2_of
from moeits.report_page.rows import rows_of

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DOCUMENTS, HELD_OUT = 1500, 40
# From the sweep of sizes alone: taus between which the counts really differ.
TAUS = "0,0.5,1,1.25,1.75,2.25,2.75"


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, heal, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "moe-tiny-qwen2moe")
    parser.add_argument("--run", type=Path, default=Path("figure-2"))
    parser.add_argument("--tau", default=TAUS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--control", type=int, default=3)
    asked = parser.parse_args(argv)
    asked.run.mkdir(parents=True, exist_ok=True)
    moeits.sweep(
        asked.model,
        output=asked.run,
        tau=asked.tau,
        evaluate="continuation",
        data_dir=SHARED / "data",
        num_fewshot=0,
        batch_size=8,
        limit=asked.limit,
        perplexity=held_out_text(asked.run / "held_out.jsonl"),
        control=asked.control,
        dtype="float32",
        heal=training_text(asked.run / "training.jsonl"),
        recipe="small",
        steps=asked.steps,
    )
    run = read_run(asked.run)
    draw = figure_2_of(run, "figure-2", rows_of(run))
    assert draw, "two points and more were evaluated"
    (ROOT / "docs" / "figure_2.svg").write_text(standalone(draw()), encoding="utf-8")
    print(tables([run]))


def training_text(path: Path) -> Path:
    """Some of the training documents: reading them all would take longer than the healing."""
    return _some("train", DOCUMENTS, path)


def held_out_text(path: Path) -> Path:
    """Some of the documents that no model was trained or healed on."""
    return _some("valid", HELD_OUT, path)


def _some(name: str, documents: int, path: Path) -> Path:
    """That many documents of a shared text, drawn with a fixed seed."""
    lines = (SHARED / "data" / "text" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(random.Random(0).sample(lines, documents)), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
