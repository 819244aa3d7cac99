"""The methods of the papers side by side, for docs/comparison.md: `python scripts/methods_table.py`.

From the files in docs/validity, the `criteria.json` of run folders of `moeits compare-criteria`: rises of the loss over
the unpruned model. A test holds the page to them.
"""

from collections.abc import Iterator
from pathlib import Path

from moeits.choosing.criteria import shown_name
from moeits.criteria_file import CriteriaFile, read_criteria, shown_rows

FOLDER = Path(__file__).parents[1] / "docs" / "validity"
MODELS = {
    "demo": "demo model (Qwen2-MoE type, 32 experts a layer)",
    "qwen2moe": "Qwen2-MoE type, 32 experts a layer",
    "mixtral": "Mixtral type, 8 experts a layer",
    "deepseekv2": "DeepSeek-V2 type, 32 experts a layer",
    "smollm2": "SmolLM2-135M, carved into 16 experts a layer",
}
# The kinds of files that have rows of a size; of a row that several have, the first one's.
SIZES = {
    "a quarter": ("gone25", "others25", "papers25", "carved25"),
    "half": ("papers", "shared", "methods", "sets", "carved", "carvedsets"),
}
RANDOM = "random, 8 seeds"
METHODS = {
    RANDOM: "random, the mean of eight",
    "moeits": "MoEITS",
    "moe-i2": "MoE-I2, its importance alone",
    "moe-i2-genetic": "MoE-I2, first stage",
    "stun": "STUN, first stage",
    "dern": "DERN, first step",
    "mop": "MoP",
    "naee": "NAEE",
    shown_name("c-gnn"): "C-GNN-Prune, *our reconstruction from its abstract*",
    "reap": "REAP",
    "aimer": "AIMER",
    "frequency": "frequency",
    "reconstruction": "reconstruction",
}
STATES = ("pruned", "refitted", "healed", "refitted, healed")


def runs(model: str) -> Iterator[tuple[str, CriteriaFile]]:
    """Size and file of each run of a model."""
    for size, kinds in SIZES.items():
        for kind in kinds:
            if (file := FOLDER / f"{kind}-{model}.json").exists():
                yield size, read_criteria(file)


def rises(model: str) -> dict[tuple[str, str, str], float]:
    """(choice, size, state) -> rise of the loss."""
    found: dict[tuple[str, str, str], float] = {}
    for size, run in runs(model):
        for row in shown_rows(run["rows"]):
            found.setdefault((row.label, size, row.state), row.rise)
    if (file := FOLDER / f"criteria-{model}.json").exists():
        # Of choices that look at no token, another window changes nothing until they are refitted.
        for row in shown_rows(read_criteria(file)["rows"]):
            if row.label in (RANDOM, "aimer") and row.state == "pruned":
                found.setdefault((row.label, "half", row.state), row.rise)
    return found


def table(model: str) -> str:
    """Markdown: a line for each method, who loses least without a refit at half first."""
    of_model = rises(model)
    columns = [
        (size, state)
        for size in SIZES
        for state in STATES
        if any((name, size, state) in of_model for name in METHODS if name != RANDOM)
    ]
    lines = [f"| {MODELS[model]} | " + " | ".join(f"{size} gone, {state}" for size, state in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    known = [name for name in METHODS if (name, "half", "pruned") in of_model]
    for name in sorted(known, key=lambda each: of_model[each, "half", "pruned"]):
        rises_of = (of_model.get((name, *column)) for column in columns)
        lines.append(f"| {METHODS[name]} | " + " | ".join("" if c is None else f"{c:.3f}" for c in rises_of) + " |")
    return "\n".join(lines)


def page() -> str:
    """All tables."""
    return "\n\n".join(map(table, MODELS))


if __name__ == "__main__":
    print(page())
