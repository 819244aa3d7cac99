"""The paper's Figure 2 on one of the shared models: what tau costs, and what healing gives back.

    python -m benchmarks.figure_2 --run figure-2            about 15 minutes; goes on after a stop

Writes the run's folder, `docs/figure_2.svg` for the README, and prints the table.
"""

import argparse
import random
from pathlib import Path

import moeits
from moeits.report_page.artefacts import read_run
from moeits.report_page.drawing import standalone
from moeits.report_page.markdown import tables
from moeits.report_page.result_sections import figure_2_of

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DOCUMENTS = 1500


def main() -> None:
    """Sweep, heal, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "moe-tiny-qwen2moe")
    parser.add_argument("--run", type=Path, default=Path("figure-2"))
    parser.add_argument("--tau", default="0.5,1,1.5,2.25")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=int, default=200)
    asked = parser.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    moeits.sweep(
        asked.model,
        output=asked.run,
        tau=asked.tau,
        evaluate="continuation",
        data_dir=SHARED / "data",
        num_fewshot=0,
        limit=asked.limit,
        dtype="float32",
        heal=training_text(asked.run / "training.jsonl"),
        recipe="small",
        steps=asked.steps,
    )
    run = read_run(asked.run)
    drawn = figure_2_of(run, "figure-2")
    assert drawn, "two points and more were evaluated"
    (ROOT / "docs" / "figure_2.svg").write_text(standalone(drawn), encoding="utf-8")
    print(tables([run]))


def training_text(path: Path) -> Path:
    """Some of the training documents, drawn with a fixed seed: reading them all would take longer than the healing."""
    lines = (SHARED / "data" / "text" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(random.Random(0).sample(lines, DOCUMENTS)), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
