"""The model card of a checkpoint that moeits wrote: what it was made from, how, what is left, and how to load it.

The card is made from facts each time: the plan, what the weights went through afterwards, and the config. The one part
that is filled in later is the slot of results, between two marks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.card_slot import results_slot
from moeits.checkpoint.side_code import code_files
from moeits.choosing.criteria import CRITERIA, shown_name
from moeits.choosing.pruning_plan import FACTORS, WHOLE_LAYERS, PruningPlan
from moeits.edits.in_order import on_card
from moeits.evidence import NOISE_MARGIN, estimated
from moeits.experts.families import has_class_on_hub
from moeits.sizes import format_size
from moeits.surgery import mtp, quantized_card
from moeits.surgery.loading_card import how_to_load
from moeits.surgery.padding import PADDED_BYTES
from moeits.version import __version__

_AFTER_NOUNS = {"of", "in", "to", "by", "beyond"}  # "experts of little weight", but "redundant experts"
_UNTRAINED = "The weights that are left are those of the source, bit for bit; nothing was trained."


@dataclass(frozen=True)
class Afterwards:
    """What the weights went through after experts were removed."""

    weights: str
    """What was done to the weights, to follow "they were"; empty if nothing was."""
    section: str
    """A section of the card, heading included."""
    trained: bool = True
    """Whether that was a training."""


def model_card(
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    plan: PruningPlan | None,
    *,
    afterwards: Sequence[Afterwards] = (),
    left_out: Sequence[str] = (),
    mtp_layers: str = "",
) -> str:
    """README.md, with front matter as the hub reads it.

    `name` is the hub id or folder name of what was pruned; `folder` is where its card, which tells the licence, lies.
    `config` is that of the checkpoint the card is for. Without a `plan` nothing is known of a pruning. `left_out` is
    code of the source's own, and `mtp_layers` names its layers for multi-token prediction.
    """
    from huggingface_hub import ModelCardData

    name = name.split("@")[0]
    if afterwards and "/" not in name:
        name = _base_model(folder) or name
    own_code = has_class_on_hub(config)
    parts = [
        f"---\n{ModelCardData(**_front_matter(folder, name)).to_yaml().strip()}\n---",
        _opening(name, plan, afterwards),
        *([] if plan is None else [_sizes(plan)]),
        *(each.section.strip() for each in afterwards),
        results_slot(_unmeasured(name, plan, afterwards)),
        f"## How to load it\n\n{how_to_load(config)}{quantized_card.loading_note(config)}{_keys_note(config)}"
        f"{_tokenizer_code_note(folder, of_model=own_code)}",
        *(
            []
            if plan is None
            else [
                _how(
                    plan,
                    afterwards,
                    _top_k_note(plan)
                    + _mtp_note(plan, mtp_layers)
                    + _whole_note(plan)
                    + ("" if own_code else _code_note(plan, left_out)),
                ),
                _experts(plan),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _keys_note(config: Mapping[str, Any]) -> str:
    """What was added for readers older than transformers 5."""
    added = (config.get("moeits") or {}).get("added_keys")
    if not added:
        return ""
    names = ", ".join(f"`{key}`" for key in added)
    return (
        f"\n\nconfig.json also has {names} as older readers spell them, with the values of the source: a reader\n"
        "that does not find them there may take its own defaults, and compute other logits without a word."
    )


def _opening(name: str, plan: PruningPlan | None, afterwards: Sequence[Afterwards]) -> str:
    source = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"The local checkpoint {name}"
    weights = _weights(plan, afterwards)
    if plan is None:
        return f"# {name.split('/')[-1]}\n\n{source}, changed by moeits {__version__}. {weights}"
    left, before = (plan.summary.get(which, "?") for which in ("experts_kept", "experts_before"))
    return (
        f"# {name.split('/')[-1]}, {left} of {before} experts\n\n"
        f"{source} with {removed_experts(plan)} removed by moeits {__version__}, which implements MoEITS\n"
        f"(arXiv 2604.10603). {weights}"
    )


def _weights(plan: PruningPlan | None, afterwards: Sequence[Afterwards]) -> str:
    """What was done to the weights that are left, by the plan's edit and then, in order, afterwards."""
    edited = plan is not None and plan.edit is not None
    sentences = (
        [on_card(plan.edit, as_factors=bool(plan.settings.get(FACTORS)))]
        if plan is not None and plan.edit is not None
        else []
    )
    done = [each for each in afterwards if each.weights]
    if not done:
        return " ".join(sentences) or _UNTRAINED
    how = "; then they were ".join(each.weights for each in done)
    sentences.append(f"{'After that they' if edited else 'The weights that are left'} were {how}; see below.")
    if not edited and not any(each.trained for each in done):
        sentences.append("All others are the source's, bit for bit: nothing was trained.")
    return " ".join(sentences)


def _sizes(plan: PruningPlan) -> str:
    summary = plan.summary
    rows = [
        ("routed experts", "experts_before", "experts_kept", "{:,}".format),
        ("parameters", "parameters_before", "parameters_after", "{:,}".format),
        ("bytes of tensors", "bytes_before", "bytes_after", format_size),
        ("bytes of tensors, with padding", "bytes_before", PADDED_BYTES, format_size),
    ]
    table = [
        f"| {label} | {shown(summary[before])} | {shown(summary[after])} |"
        for label, before, after, shown in rows
        if before in summary and after in summary
    ]
    share = (
        f"\n\nP(down), the share of routed-expert parameters removed: {summary['reduction']:.2%}; of all parameters:\n"
        f"{summary['reduction_of_all']:.2%}."
        if {"reduction", "reduction_of_all"} <= summary.keys()
        else ""
    )
    return "\n".join(["| | before | after |", "| --- | ---: | ---: |", *table]) + share


def _unmeasured(name: str, plan: PruningPlan | None, afterwards: Sequence[Afterwards]) -> str:
    """What nobody can know from this card; a measured loss above is not denied."""
    if plan is None:
        return "## Not measured\n\nWhat it can do on tasks, and how that compares with the model it was made from."
    lost = (
        "What it can do on tasks beside the unpruned model; the losses above are of one text."
        if afterwards
        else "How much the model lost."
    )
    # Where a local source lies, a card does not tell.
    where = "" if "/" in name else f", with the path of {name} in place of its name"
    return f"""## Not measured

{lost} Compare it with the unpruned model, and with a random choice of the same counts, before you trust it. The random
choice is written by this command, in this folder{where}:

```bash
moeits simplify {name} --criterion random --like plan.json --output ../control
```"""


def _how(plan: PruningPlan, afterwards: Sequence[Afterwards], notes: str) -> str:
    edited = not plan.follows_order(plan.experts_before() or plan.counts)
    by_hand = "\n**The kept experts were edited by hand:** they are not those that this leaves." if edited else ""
    repeats = "the recipe of the pruning, though not of what came after it" if afterwards else "the whole recipe"
    return f"""## How it was made

Criterion `{shown_name(plan.criterion)}`; {_settings_sentence(plan.settings)}.{by_hand}
`plan.json` is {repeats}: anybody with the source can prune it again with
`moeits prune SOURCE --plan plan.json --output OUTPUT`. The plan was made for the
fingerprint `{plan.fingerprint[:16]}`, taken over the names, dtypes, shapes and a sample of the bytes of all tensors.
{_coverage_note(plan)}{quantized_card.other_form_note(plan)}{_estimated_note(plan)}{_noise_note(plan)}\
{_unreached_note(plan)}{notes}""".rstrip()


def _coverage_note(plan: PruningPlan) -> str:
    """How surely the weights are those that the plan was made for."""
    if plan.coverage is None:
        return ""
    if plan.coverage.full:
        return f"Every byte of them was hashed too, {plan.coverage.of:,} in all: SHA-256\n`{plan.coverage.sha256}`.\n"
    return (
        f"The fingerprint is sampled, {plan.coverage.nbytes:,} bytes of {plan.coverage.of:,}: a change between the\n"
        "samples would not be seen. `--verify full` compares every byte.\n"
    )


def _tokenizer_code_note(folder: Path, *, of_model: bool) -> str:
    """That the tokenizer, or the model too, is code of somebody's, which whoever loads it may run."""
    code = [f"`{name}`" for name in code_files(folder, of_model=of_model) if (folder / name).is_file()]
    if not code:
        return ""
    if of_model:
        return f"\n\nThe code is in {', '.join(code)}."
    return (
        f"\n\nThe tokenizer needs code that the source brings ({', '.join(code)}). It was copied and never run:\n"
        "read it before you run it, with `AutoTokenizer.from_pretrained(..., trust_remote_code=True)`."
    )


def _code_note(plan: PruningPlan, left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    return (
        f"\nThe source brings modelling code of its own ({', '.join(left_out)}). It was never run and is left out: "
        f"transformers has {plan.model_type} natively.\n"
    )


def _top_k_note(plan: PruningPlan) -> str:
    """That a token is computed with fewer experts than in the source, where that is so."""
    fewer = [layer for layer, facts in plan.layers.items() if plan.counts[layer] < facts.top_k]
    if not fewer:
        return ""
    return (
        f"\nIn {len(fewer)} of {len(plan.kept)} layers fewer experts are left than the source sent a token to:\n"
        "top_k is lowered there, and a token is computed with fewer experts.\n"
    )


def _mtp_note(plan: PruningPlan, layers: str) -> str:
    """What became of layers for multi-token prediction, which no plan covers."""
    match plan.settings.get(mtp.SETTING):
        case mtp.DROPPED if layers:
            return f"\nLeft out: {layers}. Speculative decoding needs another draft model.\n"
        case mtp.KEPT if layers:
            return (
                f"\nKept whole: {layers}, with all experts; the plan does not cover it. Engines that use it read the\n"
                "number of experts of other layers for it. A uniform layout leaves it out, with `--drop-mtp`.\n"
            )
    return ""


def _whole_note(plan: PruningPlan) -> str:
    """Which layers keep all experts, since their router does not choose them."""
    layers = plan.settings.get(WHOLE_LAYERS)
    if not layers:
        return ""
    return (
        f"\nKept whole: layers {', '.join(map(str, layers))}, with all experts. A table of tokens chooses them there.\n"
    )


def _experts(plan: PruningPlan) -> str:
    before = plan.experts_before() or {}
    rows = (f"| {layer} | {before.get(layer, '?')} | {len(kept)} |" for layer, kept in plan.kept.items())
    return "\n".join(["## Experts per layer\n", "| layer | before | after |", "| ---: | ---: | ---: |", *rows])


def removed_experts(plan: PruningPlan) -> str:
    """What the removed experts are, by who chose them; no more is said of them than is so.

    The control must not pass for the method, nor chance for redundancy.
    """
    criterion = next((each for each in CRITERIA if each.name == plan.criterion), None)
    if criterion is None or ("redundancy" in criterion.needs and plan.summary.get("layers_on_noise_floor")):
        return "some experts"
    after = _AFTER_NOUNS & {*criterion.chosen.split()}
    return f"experts {criterion.chosen}" if after else f"{criterion.chosen} experts"


def _estimated_note(plan: PruningPlan) -> str:
    """That scores are estimates, with the error."""
    note = estimated(plan.settings, plan.summary)
    return f"\n{note[0].upper()}{note[1:]}:\nexact scores may choose other experts.\n" if note else ""


def _noise_note(plan: PruningPlan) -> str:
    on_floor = plan.summary.get("layers_on_noise_floor") or ()
    if not on_floor:
        return ""
    return (
        f"\nIn {len(on_floor)} of {len(plan.kept)} layers no pair of experts is {NOISE_MARGIN:.0%} more redundant than "
        "independent weights would show;\nthere scores say little of who is redundant, and a random choice may be as "
        "good or better.\n"
    )


def _unreached_note(plan: PruningPlan) -> str:
    unreached = plan.summary.get("unreached") or {}
    if not unreached:
        return ""
    count = sum(map(len, unreached.values()))
    return (
        f"\nNo token of the calibration reached {count} of the experts, in {len(unreached)} layers, so nothing was\n"
        "known of them.\n"
    )


def _front_matter(folder: Path, name: str) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moe", "pruning", "moeits"],
    }
    if "/" in name:
        # The hub has four relations; of those a checkpoint with its weights changed for good is a finetune.
        front |= {"base_model": name, "base_model_relation": "finetune"}
    return {**front, **_licence(folder)}


def _base_model(folder: Path) -> str | None:
    """What the card of a pruned checkpoint says it was made from."""
    name = _front_of(folder).get("base_model")
    return name if isinstance(name, str) and name.count("/") == 1 else None


def _front_of(folder: Path) -> dict[str, Any]:
    """The front matter of a card; empty if there is none that can be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # huggingface_hub brings it

    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, YAMLError, RecursionError):
        return {}


def _licence(folder: Path) -> dict[str, Any]:
    """The licence fields of the source's own card, if it has one that can be read."""
    front = _front_of(folder)
    fields = ("license", "license_name", "license_link", "language")
    return {field: front[field] for field in fields if _is_text(front.get(field))}


def _is_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)


def _settings_sentence(settings: Mapping[str, Any]) -> str:
    """Every setting that has a value, numbers to six digits: plan.json has them whole."""

    def shown(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: shown(each) for name, each in value.items()}
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return ", ".join(f"{name} {json.dumps(shown(value))}" for name, value in settings.items() if value is not None)
