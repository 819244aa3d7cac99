"""docs/clients.md, made from docs/clients/*.json: `python scripts/clients_page.py > docs/clients.md`.

The files are what `python scripts/clients CLIENT MODELS` writes.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "clients"))

from cases import SERVED, SERVERS

FOLDER = Path(__file__).parents[1] / "docs" / "clients"
LAYOUTS = ("unpruned", "uniform", "per-layer")
MOST = {
    "max_difference": 1e-4,
    "reloaded_differs": 1e-4,
    "loglikelihoods_differ": 1e-3,
    "tensors_differ": 0.0,
    "f16_tensors_differ": 0.0,
    "f16_mean_difference": 2e-2,
    "first_loss_differs": 5e-2,
}
"""What may differ by how much in a row that is called the same: rounding, also of weights and products to halves in
llama.cpp's f16, and in a first loss trl's balance term."""

HEAD = """\
# Clients that open what moeits writes

Six small models of random weights (Mixtral, Qwen2-MoE, DeepSeek-V2, DeepSeek-V2-Lite, OLMoE and Qwen3-MoE; eight experts,
float32), each as transformers 5 saves it (*unpruned*), pruned to the same number of experts in every layer (`--layout
uniform`), and to unequal numbers (`--layout per-layer`), are opened by clients that we did not write. What they compute is
compared with stock transformers 5 running the *unpruned* model whose routers cannot choose the removed experts. Anybody
can repeat it, each client in an environment of its own:

    python scripts/clients/models.py MODELS        # with moeits and its extras: the models, and what they should compute
    python scripts/clients mlx-lm MODELS           # with mlx-lm: opens, compares, writes docs/clients/mlx-lm.json
    python scripts/clients_page.py > docs/clients.md

The models are small (three layers, and the 27 by which llama.cpp knows a DeepSeek-V2-Lite) and otherwise of the kind that the
releases are, so that what a client has no way for is seen: DeepSeek-V2 has a rank of the queries, yarn and groups of experts, -Lite
no rank and no groups, OLMoE as many key heads as query heads, Qwen3-MoE wide heads and gates that sum to one. Where a client may
overlook something they are like nobody's default: the base of the rotary embeddings is 50000, norms are not one and biases not zero.

A cell says how many of the six compute the same, and the largest difference of a logit. Logits reach {largest:g}, and those
of the unpruned model are {nearest:g} to {furthest:g} off, so that another model would be noticed. No GPU was used, and no real model.

| client | versions | unpruned | uniform | per layer |
| --- | --- | --- | --- | --- |
"""  # noqa: E501

SEEN = {
    "transformers-4": "`per layer` with `trust_remote_code=True`.",
    "transformers-5": "`per layer` with `trust_remote_code=True`; the same as `moeits.load`.",
    "pipeline": '`pipeline("text-generation", ...)`: the same twelve greedy tokens after a prompt.',
    "lm-eval": "`lm_eval --model hf`, log-likelihoods of three continuations; `trust_remote_code=True` per layer.",
    "accelerate-launch": "`accelerate launch -m lm_eval`, one process, otherwise as above.",
    "peft": "LoRA on attention and on the fused experts, five steps, saved, loaded again: the same logits.",
    "trl": "`SFTTrainer` with LoRA, five steps; its first loss is the reference's, plus the balance term that it adds.",
    "mlx-lm": "The CPU build on Linux.",
    "openvino": "Exported and opened by `OVModelForCausalLM`; `trust_remote_code=True` per layer.",
    "gguf": "Converted by llama.cpp's converter to f32 and to f16; every router and expert of each file against the "
    "checkpoint's, rounded to halves where the file has halves.",
    "llama.cpp": "Converted to f32 and opened by llama-cpp-python, keys and values in f32; then f16, and Q4_K_M.",
    "vllm": (
        "Its OpenAI server on the CPU, asked over HTTP for the log-probabilities of all tokens, without its kernel for "
        "rotary embeddings (`-rotary_embedding`), which turned interleaved ones wrongly in float32. `per layer` by the "
        "plug-in that comes with moeits."
    ),
    "torchao": "int8 weights of every `Linear`, against the masked unpruned model quantized in the same way.",
    "llm-compressor": "W8A16 without data, saved, opened again, against the quantized model before it was saved.",
}

OF_SERVERS = """\
## Further families in a server

How far the log-probabilities of a served model are from those of the masked unpruned one, at most; where a server
computes in bfloat16 alone, the median over tokens of each one's largest difference, for rounding sends single tokens to
other experts there, unpruned as well. `padded` is `--layout padded`, which the stock class opens, without the plug-in.
Models as above; those that take pictures are served as models of text (`--language-model-only`), with an empty module
in the place of torchvision, which has no build beside this torch here.

    python scripts/clients vllm MODELS             # in vLLM's environment, with moeits installed there

| family | server | unpruned | uniform | per layer | padded |
| --- | --- | ---: | ---: | ---: | ---: |
"""

NOT_RUN = """\
## Not run

{clients}. A uniform checkpoint has its one number of experts in config.json where the source has it; for unequal
layers there is a plug-in for SGLang as for vLLM ([serving](serving.md)). Such checkpoints also list their counts as
`num_experts_per_layer`, an entry for each decoder layer and 0 where it has no experts, which EvoESAP and patched
servers read."""

_OLD_KEYS = (
    "a config.json of transformers 5 has the rotary base, and Qwen3-MoE's count, under names that this client does not "
    "know; what moeits writes has both spellings"
)
_MSCALE = "transformers 5: this one leaves out the factor by which yarn scales DeepSeek-V2's attention, unpruned too"
_OLDER = "nothing here: its exporter wants an older transformers for it, unpruned too"
_ANOTHER = "torchao: what this client saves of a Mixtral is another model, unpruned too"
_ONE_COUNT = "`--layout uniform`: this client reads one count for all layers"
INSTEAD: Mapping[tuple[str, str], str] = {
    ("transformers-4", "unpruned"): _OLD_KEYS,
    ("transformers-4", "deepseek_v2"): _MSCALE,
    ("transformers-4", "deepseek_v2_lite"): _MSCALE,
    ("mlx-lm", "unpruned"): _OLD_KEYS,
    ("mlx-lm", "per-layer"): _ONE_COUNT,
    ("gguf", "per-layer"): _ONE_COUNT,
    ("llama.cpp", "per-layer"): _ONE_COUNT,
    (
        "llama.cpp",
        "deepseek_v2",
    ): "nothing here: it takes the group of experts whose best two have the largest sum, where "
    "DeepSeek-V2 takes that of the best one, unpruned too; -Lite has no groups",
    ("openvino", "deepseek_v2"): _OLDER,
    ("openvino", "deepseek_v2_lite"): _OLDER,
    ("openvino", "olmoe"): "nothing here: its exporter has no OLMoE, unpruned neither",
    ("vllm", "minimax_m2"): "another device: on the CPU it has no sigmoid without groups of experts, unpruned too",
    ("vllm", "qwen3_next"): "it computes this in bfloat16 alone on the CPU: what is off is rounding, unpruned too",
    ("vllm", "qwen3_5_moe"): "it computes this in bfloat16 alone on the CPU: what is off is rounding, unpruned too",
    ("vllm", "phimoe"): "nothing here: it leaves out the bias of the head, and nothing else, unpruned too",
    ("llm-compressor", "mixtral"): _ANOTHER,
    ("llm-compressor", "mixtral-per-layer"): _ANOTHER,
    ("llm-compressor", "per-layer"): _ONE_COUNT,
}
"""Client and checkpoint, layout or family -> what to use where it fails."""

Row = Mapping[str, Any]


def read() -> dict[str, Any]:
    """Client -> what its file says, in the order of SEEN."""
    return {
        name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        for name in SEEN
        if (FOLDER / f"{name}.json").is_file()
    }


def is_same(row: Row) -> bool:
    """Whether the client computed what it should."""
    seen = {**row, **row.get("facts", {})}
    known = [name for name in MOST if name in seen]
    within = all(seen[name] <= MOST[name] for name in known)
    return "error" not in row and row.get("same_text", True) and within and bool(known or "same_text" in row)


def cell(rows: Sequence[Row]) -> str:
    """Of one client and layout."""
    same = [row for row in rows if is_same(row)]
    furthest = max((row["max_difference"] for row in same if "max_difference" in row), default=None)
    count = "all" if len(same) == len(rows) else f"{len(same)} of {len(rows)}" if same else "none"
    return count + (f", to {furthest:g}" if furthest is not None else "")


def served(client: str, rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the table of further families, which only servers are given."""
    for family in SERVED:
        of = {row["layout"]: row for row in rows if row["family"] == family}
        cells = (in_a_server(of[layout]) if layout in of else "" for layout in (*LAYOUTS, "padded"))
        yield f"| {family} | {client} | {' | '.join(cells)} |"


def why_another(client: str, rows: Sequence[Row]) -> Iterator[str]:
    """What to say of those that are not computed as they should be."""
    of = {row["family"]: instead(client, row) for row in rows if row["family"] in SERVED and not is_same(row)}
    yield from (f"- **{family}**, {client}: {use}." for family, use in of.items())


def in_a_server(row: Row) -> str:
    """One cell: what it says, or how far off it is."""
    if "error" in row:
        return said(row)
    if "median_difference" in row.get("facts", {}):
        return f"{row['facts']['median_difference']:g} ({row['facts']['dtype']})"
    return f"{row['max_difference']:g}" + ("" if is_same(row) else ", **another model**")


def instead(client: str, row: Row) -> str:
    """What to use where a client fails on a checkpoint; empty where nobody has said."""
    keys = [(client, kind) for kind in (f"{row['family']}-{row['layout']}", row["layout"], row["family"])]
    return next((INSTEAD[key] for key in keys if key in INSTEAD), "")


def failures(client: str, rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the second table: families that fail alike in the same layouts are one."""
    of_family: dict[tuple[str, str, str], list[Row]] = {}
    for row in (row for row in rows if not is_same(row)):
        of_family.setdefault((row["family"], instead(client, row), said(row).split(":")[0]), []).append(row)
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for (_, use, kind), found in of_family.items():
        alike.setdefault((", ".join(row["layout"] for row in found), use, kind), []).extend(found)
    for (layouts, use, _), found in alike.items():
        families = ", ".join(dict.fromkeys(row["family"] for row in found))
        wrong = [row["max_difference"] for row in found if "error" not in row and "max_difference" in row]
        far = f", off by up to {max(wrong):g}" if wrong else ""
        yield f"| {client} | {families} ({layouts}) | {said(found[0])}{far} | {use} |"


def coarser(rows: Sequence[Row], kind: str) -> str:
    """How far llama.cpp's logits of coarser weights are from its own of float32 ones, uniform and unpruned."""
    parts = []
    for layout in ("uniform", "unpruned"):
        facts = [
            row["facts"] for row in rows if row["layout"] == layout and f"{kind}_same_first" in row.get("facts", {})
        ]
        off, same = ([each[f"{kind}_{name}"] for each in facts] for name in ("mean_difference", "same_first"))
        chosen = " to ".join(f"{share:.0%}" for share in sorted({min(same), max(same)}))
        parts.append(
            f"{layout} {min(off):g} to {max(off):g} off on average, and in {chosen} of places the same first token"
        )
    return "; ".join(parts)


def of_coarser(rows: Sequence[Row]) -> str:
    """What is said of them below the list of what was done."""
    return (
        f"llama.cpp's logits of f16 beside its own of f32: {coarser(rows, 'f16')}. Of Q4_K_M:\n"
        f"{coarser(rows, 'q4_k_m')}.\nWeights at random are the worst that four bits can be given, "
        "so the latter says nothing of a release."
    )


def said(row: Row) -> str:
    """What a client says where it does not compute what it should: as much of it as a line holds."""
    if "error" not in row:
        return "**no error, other numbers**"
    told = ""
    for sentence in re.split(r"(?<=[.]) ", row["error"].replace("`", "'")):
        if told and len(told + sentence) > 150:
            break
        told = f"{told} {sentence}".strip()
    return f"`{told}`"


def page() -> str:
    """The whole page."""
    results = read()
    lines, failed = [], []
    for client, result in results.items():
        rows = [row for row in result["rows"] if row["family"] not in SERVED]
        by_layout = [[row for row in rows if row["layout"] == layout] for layout in LAYOUTS]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "python")
        lines.append(f"| {client} | {versions} | {' | '.join(map(cell, by_layout))} |")
        failed.extend(failures(client, rows))
    of_transformers = [row for row in results["transformers-5"]["rows"] if row["layout"] != "unpruned"]
    apart = [row["unpruned_difference"] for row in of_transformers]
    largest = max(row["largest_logit"] for row in of_transformers)
    parts = [HEAD.format(largest=largest, nearest=min(apart), furthest=max(apart)) + "\n".join(lines)]
    parts.append("## What was done in each\n\n" + "\n".join(f"- **{client}**: {SEEN[client]}" for client in results))
    if "llama.cpp" in results:
        parts.append(of_coarser(results["llama.cpp"]["rows"]))
    parts.append(
        "## What does not open, and what to use instead\n\n"
        "| client | checkpoints | what it says | instead |\n| --- | --- | --- | --- |\n" + "\n".join(failed)
    )
    servers = {client: results[client]["rows"] for client in SERVERS if client in results}
    parts.append(OF_SERVERS + "\n".join(line for client, rows in servers.items() for line in served(client, rows)))
    parts.append("\n".join(line for client, rows in servers.items() for line in why_another(client, rows)))
    missing = [client for client in SEEN if client not in results]
    parts.append(NOT_RUN.format(clients=", ".join(["SGLang on all checkpoints", *missing])))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
