"""Every flag of the command line, described once: one name, one meaning, wherever it is taken.

Keys are the keyword arguments of the stage functions; positional arguments carry `typer.Argument`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from moeits.errors import SettingError


def parse_weights(text: str) -> dict[str, float]:
    """`gate=0.2,up=0.4,down=0.4` as a mapping. Raises SettingError."""
    try:
        return {name.strip(): float(value) for name, value in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise SettingError(f"--projection-weights {text} makes no sense: write gate=0.2,up=0.4,down=0.4.") from None


FLAGS: dict[str, Any] = {
    "model": Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, or a hub id (org/name).")],
    "path": Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint folder, a hub id, or a plan (.json).")],
    "evidence": Annotated[Path, typer.Argument(metavar="EVIDENCE", help="What moeits score wrote.")],
    "output": Annotated[Path, typer.Option(help="Where the result goes.")],
    "tau": Annotated[float | None, typer.Option(help="The paper's dial: remove pairs above mean + tau * iqr.")],
    "reduction": Annotated[
        float | None, typer.Option(help="Remove at least this share of the routed-expert parameters.")
    ],
    "max_size": Annotated[str | None, typer.Option(help="At most this many bytes of tensors, such as 12GiB.")],
    "experts_per_layer": Annotated[int | None, typer.Option(help="Keep this many experts in every layer.")],
    "like": Annotated[Path | None, typer.Option(help="Keep as many experts in each layer as this plan does.")],
    "criterion": Annotated[str, typer.Option(help="Who goes first: moeits or random.")],
    "min_experts": Annotated[
        int | None, typer.Option(help="No layer keeps fewer experts than this.", show_default="the layer's top_k")
    ],
    "seed": Annotated[int, typer.Option(help="Seed of a random criterion.")],
    "preset": Annotated[str, typer.Option(help="Projection weights: paper (their mean) or authors-code.")],
    "estimator": Annotated[str, typer.Option(help="How redundancy is estimated.")],
    "bins": Annotated[str, typer.Option(help="Bins of a weight's histogram: auto, or a number.")],
    "projection_weights": Annotated[
        dict | None,
        typer.Option(parser=parse_weights, metavar="gate=W,up=W,down=W", help="Projection weights by hand."),
    ],
    "diagonal": Annotated[str, typer.Option(help="The zeros R_ii in mean and iqr: zero (they count) or excluded.")],
    "threads": Annotated[int | None, typer.Option(help="Threads of the scoring.", show_default="all cores")],
    "memory": Annotated[str, typer.Option(help="Bound on the encoded weights held at once.")],
    "fresh": Annotated[bool, typer.Option("--fresh", help="Forget finished layers of an interrupted run.")],
    "plan": Annotated[Path, typer.Option(help="The plan to carry out.")],
    "layout": Annotated[
        str, typer.Option(help="auto, per-layer, uniform (evened out along the plan's order), padded.")
    ],
    "max_shard_size": Annotated[
        str | None, typer.Option(help="Largest shard, such as 5GB.", show_default="the source's largest")
    ],
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")],
    "overwrite": Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at the output.")],
    "runs": Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that moeits sweep wrote.")],
    "format": Annotated[str, typer.Option(help="html: one page; md: its tables, for a paper or a model card.")],
    "sweep tau": Annotated[str, typer.Option(help="FIRST:LAST:STEP, both ends included, or a list T,T,T.")],
    "tasks": Annotated[
        str | None,
        typer.Option(
            help="Names of tasks, by commas; paper stands for the paper's five.",
            show_default="paper, or none with --perplexity",
        ),
    ],
    "num_fewshot": Annotated[int, typer.Option(help="Examples in each prompt.")],
    "evaluate batch_size": Annotated[int, typer.Option(help="Prompts in one batch.")],
    "limit": Annotated[int | None, typer.Option(help="Only the first N items of each task.", show_default="all")],
    "data_dir": Annotated[
        Path | None, typer.Option(help="Folder with the tasks' data, instead of the hub (docs/evaluation.md).")
    ],
    "perplexity": Annotated[
        Path | None, typer.Option(help="A text: documents in the field text of a .jsonl, or any file as one.")
    ],
    "window": Annotated[
        int | None,
        typer.Option(help="Tokens of a perplexity window.", show_default="the model's context, at most 2048"),
    ],
    "backend": Annotated[str, typer.Option(help="hf, or vllm for checkpoints with equal counts in all layers.")],
    "dtype": Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")],
    "device": Annotated[
        str | None,
        typer.Option(help="cpu, cuda:0, ... or split: one model over all.", show_default="the first accelerator"),
    ],
    "a": Annotated[Path, typer.Argument(metavar="A.json", help="Results to compare with.")],
    "b": Annotated[Path, typer.Argument(metavar="B.json", help="Results that are compared.")],
    "compare tasks": Annotated[
        str | None, typer.Option(help="Only these tasks, by commas.", show_default="all, which both must have")
    ],
    "compare seed": Annotated[int, typer.Option(help="Seed of the bootstrap.")],
    "resamples": Annotated[int, typer.Option(help="Resamples of the bootstrap.")],
    "json": Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
}


def flag(command: str, name: str) -> Any:
    """The description of a flag; where a command gives it another shape, the key is `command name`."""
    return FLAGS.get(f"{command} {name}") or FLAGS[name]
