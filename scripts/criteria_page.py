"""docs/validity/README.md, made from the files beside it: `python scripts/criteria_page.py > docs/validity/README.md`.

The files are the criteria.json of run folders of `moeits compare-criteria`.
"""

from collections.abc import Sequence
from pathlib import Path

from moeits.criteria_file import CriteriaFile, ShownRow, read_criteria, shown_rows

FOLDER = Path(__file__).parents[1] / "docs" / "validity"
STATES = ("pruned", "refitted", "healed", "refitted, healed")

HEAD = """\
# Criteria compared

Every number of this page is of a file beside it, the `criteria.json` of a run folder of `moeits compare-criteria`
(`scripts/criteria_page.py` makes the page, a test compares the two). Half of the experts are removed where a section
does not say otherwise. Rise of the loss over the unpruned model, nats per token, with its paired 95 % interval over
documents; of random choices the mean of the seeds, the least and the most. The best refitted choice stands first. What
it all says is in [validity.md](../validity.md).

The judging text is every eighth document of `../shared/data/text/valid.jsonl`, which holds all of its ten sources
(`awk 'NR%8==0'`), and for the demo model the held-out text that the package carries. Each is one seed of tokens, by one
thread of two cores that had other work to do, so that the seconds say little.
"""

KINDS = {
    "criteria": """
## All criteria, refitted without the shared expert

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --also none --perplexity TEXT --output RUN \\
        --criteria moeits,random:8,reap,reconstruction,chance-corrected,ean-mean,ean-sum,frequency,router-score,aimer,\\
    weight-norm,router-norm,router-cosine
""",
    "shared": """
## Refitted as by default, with the shared expert

Texts of 128 tokens, of which as many tokens are more texts. The Mixtral type has no shared expert.

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,random:2,reap,reconstruction
""",
    "methods": """
## More methods, as published as far as docs/criteria.md says

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria reconstruction,naee,stun,aligned,correlation
""",
    "sets": """
## Methods that calibrating is asked for: a search, specialists, communities

`c-gnn` is reconstructed from an abstract, and no row of that paper. On the demo model beside eight random choices.

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria mop,c-gnn,moe-i2-genetic,reconstruction
""",
    "papers": """
## The first steps of other papers, and eight random choices, with the shared expert

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria dern,moe-i2,moe-i2-genetic,c-gnn[,mop,random:8,aimer]
""",
    "papers25": """
## A quarter removed, by the methods of other papers

    moeits compare-criteria MODEL --keep 0.75 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria naee,stun,dern,moe-i2,moe-i2-genetic,c-gnn,mop
""",
    "carved": """
## SmolLM2-135M carved into 16 experts a layer

`../shared/tools/carve_smollm2.py` makes it: 512 neurons shared, 64 in each of 16 experts, of which eight are chosen.
The beginnings of 31 articles of WikiText-2's test split judge (`experiments/wikitext_heads.py`). The refits of some
choices, on 4,096 tokens, are added to the same run.

    moeits compare-criteria MOE --keep 0.5 --data self --tokens 4096 --held-out 2048 --window 128 --refit no \\
        --perplexity HEADS --limit 31 --output RUN --criteria reconstruction,moeits,reap,...,random:8
""",
    "carvedsets": """
## The same, by methods that calibrating is asked for

    moeits compare-criteria MOE --keep 0.5 --data self --tokens 4096 --held-out 2048 --window 128 --refit no \\
        --perplexity HEADS --limit 31 --output RUN --criteria mop,c-gnn,moe-i2-genetic
""",
    "carved25": """
## SmolLM2-135M carved, a quarter removed

As in the two sections above, with `--keep 0.75`.
""",
    "all": """
## All criteria that there are, with the shared expert

Begun beside a dozen other programs, stopped and gone on with. Before there were gaussian, mop, c-gnn and
moe-i2-genetic it took eight minutes of one thread, which nothing else disturbed.

    moeits compare-criteria MODEL --criteria all --keep 0.5 --data self --tokens 4096 --held-out 2048 --window 128 \\
        --output RUN
""",
    "gone25": """
## A quarter removed

    moeits compare-criteria MODEL --keep 0.75 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,random:8,reap,reconstruction
""",
    "gone75": """
## Three quarters removed

    moeits compare-criteria MODEL --keep 0.25 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,random:8,reap,reconstruction
""",
    "others25": """
## A quarter removed, the other criteria

    moeits compare-criteria MODEL --keep 0.75 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria chance-corrected,ean-mean,ean-sum,frequency,router-score,aimer,weight-norm,router-norm,router-cosine
""",
    "others75": """
## Three quarters removed, the other criteria

    moeits compare-criteria MODEL --keep 0.25 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria chance-corrected,ean-mean,ean-sum,frequency,router-score,aimer,weight-norm,router-norm,router-cosine
""",
    "fresh": """
## Models of our own training, on which nothing was chosen

    python ../shared/tools/train_tiny_moe.py train --family qwen2moe --seed 7 ...
    python ../shared/tools/train_tiny_moe.py train --family mixtral --seed 11 --steps 400 ...
    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,random:4,reap,reconstruction
""",
    "healed": """
## Healed, refitted, and both

`small`, on 100 x 4 x 256 tokens of the text that the model was trained on. The Qwen2-MoE type is refitted as in the
section above, the others as in the first one.

    moeits compare-criteria MODEL --keep 0.5 --data self --tokens 8192 --perplexity TEXT --output RUN \\
        --criteria moeits,reconstruction --heal ../shared/data/text/train.jsonl
""",
    "healed25": """
## A quarter removed: healed, refitted, and both

    moeits compare-criteria MODEL --keep 0.75 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,reconstruction --heal ../shared/data/text/train.jsonl
""",
    "healed75": """
## Three quarters removed: healed, refitted, and both

    moeits compare-criteria MODEL --keep 0.25 --data self --tokens 8192 --window 128 --perplexity TEXT --output RUN \\
        --criteria moeits,reconstruction --heal ../shared/data/text/train.jsonl
""",
    "tokens": """
## How many tokens, and whose

Refitted as by default, with `--data self`, `--data bundled` or `--data ../shared/data/text/train.jsonl`, and with other
numbers of `--tokens`. Of the training text whole sources are held out, so that it is fitted on some of its ten only.
""",
}


def cell(row: ShownRow | None) -> str:
    """A rise with its interval."""
    if row is None:
        return ""
    refused = ", refused" if row.refused else ""
    return f"{row.rise:.3f} ({row.low:.3f} to {row.high:.3f}){refused}"


def lines_of(run: CriteriaFile) -> tuple[list[str], list[str]]:
    """The states that a run has, and a line for each choice."""
    table: dict[str, dict[str, ShownRow]] = {}
    for row in shown_rows(run["rows"]):
        table.setdefault(row.label, {})[row.state] = row
    states = [state for state in STATES if any(state in of_choice for of_choice in table.values())]
    order = sorted(table, key=lambda label: (table[label].get("refitted") or table[label]["pruned"]).rise)
    return states, [f"| {label} | {' | '.join(cell(table[label].get(state)) for state in states)} |" for label in order]


def section(file: Path) -> str:
    """The table of one file."""
    run = read_criteria(file)
    states, lines = lines_of(run)
    text = run["text"]
    assert text is not None
    facts = (
        f"[{file.name}]({file.name}): {run['source']}, {run['experts_kept']} of {run['experts_before']} experts kept; "
        f"unpruned {text['nats_per_token']:.4f}, {text['documents']} documents, {text['tokens']} tokens."
    )
    return "\n".join(
        ["", facts, "", f"| choice | {' | '.join(states)} |", f"| --- |{' ---: |' * len(states)}", *lines, ""]
    )


OVERVIEW = """
## A quarter, half and three quarters removed

Pruned alone, and refitted as by default on 8,192 self-written tokens; the sections below have the intervals.

"""
SIZES = {"gone25": "a quarter", "shared": "half", "gone75": "three quarters"}
ALL = [(choice, state) for state in STATES[:2] for choice in ("random", "moeits", "reap", "reconstruction")]
# What validity.md shows of them.
SOME = [("reconstruction", "pruned"), *ALL[4:]]


def overview(shown: Sequence[tuple[str, str]]) -> str:
    """The means of a few choices at every size: a line for each model and size."""
    lines = [f"| model | removed | {' | '.join(f'{choice}, {state}' for choice, state in shown)} |"]
    lines.append(f"| --- | --- |{' ---: |' * len(shown)}")
    for model in sorted({file.stem.partition("-")[2] for file in FOLDER.glob("gone25-*.json")}):
        for kind, removed in SIZES.items():
            run = read_criteria(FOLDER / f"{kind}-{model}.json")
            rises = {(row.label.partition(",")[0], row.state): row.rise for row in shown_rows(run["rows"])}
            cells = " | ".join(f"{rises[each]:.3f}" for each in shown)
            lines.append(f"| {run['source']} | {removed} | {cells} |")
    return "\n".join(lines) + "\n"


COSTS = """
## What a row took

Of the runs by all criteria and of those that were healed, half of the experts removed: from the least to the most of
their choices, with all that a row needs (scoring, calibration, the tokens that the model writes). One thread.

"""


def costs() -> str:
    """Seconds and memory of every state: a line for each model and state."""
    lines = ["| model | state | seconds | peak memory, GiB | tokens |", "| --- | --- | ---: | ---: | ---: |"]
    for model in sorted({file.stem.partition("-")[2] for file in FOLDER.glob("criteria-*.json")}):
        runs = [read_criteria(FOLDER / f"{kind}-{model}.json") for kind in ("criteria", "healed")]
        for state in STATES:
            kind = runs[0] if state in STATES[:2] else runs[1]
            spent = [row["cost"] for row in kind["rows"] if row["state"] == state]
            seconds, tokens = ([cost[name] for cost in spent] for name in ("seconds", "tokens"))
            memory = [cost["peak_bytes"] / 2**30 for cost in spent if cost["peak_bytes"] is not None]
            lines.append(
                f"| {runs[0]['source']} | {state} | {min(seconds):.0f} to {max(seconds):.0f} | "
                f"{min(memory):.1f} to {max(memory):.1f} | {min(tokens):,} to {max(tokens):,} |"
            )
    return "\n".join(lines) + "\n"


HEALING = """
## Healed, refitted, and both, at three sizes

The rises of the sections on healing. At half all but the Qwen2-MoE type are refitted without the shared expert, on
texts of 256 tokens.

"""
HEALED = {"healed25": "a quarter", "healed": "half", "healed75": "three quarters"}


def healed() -> str:
    """What a choice loses pruned, refitted, healed and both: a line for each model, size and choice."""
    lines = [f"| model | removed | choice | {' | '.join(STATES)} |", f"| --- | --- | --- |{' ---: |' * len(STATES)}"]
    for model in sorted({file.stem.partition("-")[2] for file in FOLDER.glob("healed75-*.json")}):
        for kind, removed in HEALED.items():
            run = read_criteria(FOLDER / f"{kind}-{model}.json")
            rises = {(row.label, row.state): f"{row.rise:.3f}" for row in shown_rows(run["rows"])}
            for choice in ("reconstruction", "moeits"):
                cells = " | ".join(rises[choice, state] for state in STATES)
                lines.append(f"| {run['source']} | {removed} | {choice} | {cells} |")
    return "\n".join(lines) + "\n"


COUNTS, SOURCES = ("2048", "8192", "32768"), {"self": "its own", "bundled": "bundled", "train": "training text"}


def by_tokens() -> str:
    """What reconstruction, refitted, loses at half: a line for each model and text."""
    lines = [
        f"| model | fitted on | {' | '.join(f'{int(count):,} tokens' for count in COUNTS)} |",
        "| --- | --- |" + " ---: |" * 3,
    ]
    for model in sorted({file.stem.split("-")[1] for file in FOLDER.glob("tokens-*.json")}):
        for source, called in SOURCES.items():
            files = [FOLDER / f"tokens-{model}-{source}-{count}.json" for count in COUNTS]
            if source == "self" and not files[1].exists():  # it is the run of the second section
                files[1] = FOLDER / f"shared-{model}.json"
            cells = [cell(_refitted(file)) for file in files]
            lines.append(f"| {model} | {called} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _refitted(file: Path) -> ShownRow | None:
    if not file.exists():
        return None
    rows = shown_rows(read_criteria(file)["rows"])
    return next(row for row in rows if (row.label, row.state) == ("reconstruction", "refitted"))


def page() -> str:
    """The page as it should be on disk."""
    parts = [HEAD, OVERVIEW, overview(ALL), COSTS, costs(), HEALING, healed()]
    for kind, head in KINDS.items():
        parts += [
            head,
            *(["\n", by_tokens()] if kind == "tokens" else []),
            *(section(file) for file in sorted(FOLDER.glob(f"{kind}-*.json"))),
        ]
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
