"""The model card of a pruned checkpoint: what it was made from, how, what is left, and how to load it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import CRITERIA
from moeits.choosing.pruning_plan import PruningPlan
from moeits.evidence import NOISE_MARGIN
from moeits.experts.layout import MoELayout
from moeits.sizes import format_size
from moeits.surgery import mtp
from moeits.version import __version__

_LOADS_UNIFORM = """\
All layers keep the same number of experts, so stock loaders open it, without remote code:

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("PATH")
```

Run by us: transformers. Expected, not run: vLLM, SGLang, llama.cpp (after conversion), MLX; they read one number of
experts from config.json.
"""

_LOADS_PER_LAYER = """\
Layers keep different numbers of experts. Open it with moeits, or with the small generic file it carries
(`modeling_moeits.py` resizes the layers of the stock class; there is no forked modelling code):

```python
import moeits
model = moeits.load("PATH")

from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
```

Run by us: transformers, lm-evaluation-harness. vLLM, SGLang, llama.cpp and MLX read one number of experts for all
layers and do not open it: for them, prune again from the same plan with `--layout uniform`.
"""


def model_card(checkpoint: Checkpoint, moe: MoELayout, plan: PruningPlan, layout: str, left_out: list[str]) -> str:
    """README.md of a pruned checkpoint, with front matter as the hub reads it."""
    from huggingface_hub import ModelCardData

    name = checkpoint.source.split("@")[0]
    front = ModelCardData(**_front_matter(checkpoint.folder, name)).to_yaml().strip()
    source = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"The local checkpoint {name}"
    summary = plan.summary
    code = (
        f"\nThe source brings modelling code of its own ({', '.join(left_out)}). It was never run and is left out: "
        f"transformers has {moe.architecture.model_type} natively.\n"
        if left_out
        else ""
    )
    edited = not plan.follows_order({i: layer.num_experts for i, layer in moe.layers.items()})
    by_hand = "\n**The kept experts were edited by hand:** they are not those that this leaves." if edited else ""
    draft_head = _mtp_note(moe, plan)
    return f"""---
{front}
---

# {name.split("/")[-1]}, {summary["experts_kept"]} of {summary["experts_before"]} experts

{source} with {_chosen_by(plan.criterion)} experts removed by moeits {__version__}, which implements MoEITS
(arXiv 2604.10603). The weights that are left are those of the source, bit for bit; nothing was trained.

| | before | after |
| --- | ---: | ---: |
| routed experts | {summary["experts_before"]} | {summary["experts_kept"]} |
| parameters | {summary["parameters_before"]:,} | {summary["parameters_after"]:,} |
| bytes of tensors | {format_size(summary["bytes_before"])} | {format_size(summary["bytes_after"])} |

P(down), the share of routed-expert parameters removed: {summary["reduction"]:.2%}; of all parameters:
{summary["reduction_of_all"]:.2%}.

## How it was made

Criterion `{plan.criterion}`; {_settings_sentence(plan.settings)}.{by_hand}
`plan.json` is the whole recipe: anybody with the source can repeat it with `moeits prune SOURCE --plan plan.json`.
{_noise_note(summary, len(plan.kept))}{draft_head}{code}
## How to load it

{_LOADS_UNIFORM if layout == "uniform" else _LOADS_PER_LAYER}
## Experts per layer

| layer | before | after |
| ---: | ---: | ---: |
{_rows(moe, plan)}

## Not measured here

How much the model lost. Compare it with the unpruned model, and with a random choice of the same counts, before you
trust it (`moeits plan --criterion random --like plan.json`).
"""


def _chosen_by(criterion: str) -> str:
    """What the removed experts are, by who chose them; the control must not pass for the method."""
    return next((each.chosen for each in CRITERIA if each.name == criterion), "some")


def _noise_note(summary: Mapping[str, Any], layers: int) -> str:
    on_floor = summary.get("layers_on_noise_floor") or ()
    if not on_floor:
        return ""
    return (
        f"\nIn {len(on_floor)} of {layers} layers no pair of experts is {NOISE_MARGIN:.0%} more redundant than "
        "independent weights would show;\nthere scores say little of who is redundant, and a random choice may be as "
        "good or better.\n"
    )


def _mtp_note(moe: MoELayout, plan: PruningPlan) -> str:
    """What became of layers for multi-token prediction, which no plan covers."""
    match plan.settings.get(mtp.SETTING):
        case mtp.DROPPED if moe.mtp.names:
            return f"\nLeft out: {moe.mtp}. Speculative decoding needs another draft model.\n"
        case mtp.KEPT:
            return (
                f"\nKept whole: {moe.mtp}, with all experts; the plan does not cover it. Engines that use it read the\n"
                "number of experts of other layers for it. A uniform layout leaves it out, with `--drop-mtp`.\n"
            )
    return ""


def _front_matter(source: Path, name: str) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["moe", "pruning", "moeits"]}
    if "/" in name:
        front["base_model"] = name
    return {**front, **_licence(source)}


def _licence(source: Path) -> dict[str, Any]:
    """The licence fields of the source's own card, if it has one that can be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # huggingface_hub brings it

    try:
        front = metadata_load(source / "README.md") or {}
    except (OSError, ValueError, YAMLError):
        return {}
    return {field: front[field] for field in ("license", "license_name", "license_link", "language") if field in front}


def _settings_sentence(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items() if value is not None)


def _rows(moe: MoELayout, plan: PruningPlan) -> str:
    return "\n".join(f"| {i} | {layer.num_experts} | {len(plan.kept[i])} |" for i, layer in moe.layers.items())
