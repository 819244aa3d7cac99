"""A calibration and a refit, as a person sees it."""

from collections.abc import Mapping
from typing import Any

from moeits.choosing.protection import listed, super_experts
from moeits.console import out, table, written
from moeits.console.plans import of_layers
from moeits.evidence import Evidence
from moeits.printable import printable
from moeits.stages.refit import Refitting


def show_refitting(refitting: Refitting, arguments: dict[str, Any]) -> None:
    """Errors of the layers and the losses, before and after, on tokens that took no part."""
    rows = [
        (
            str(layer["layer"]),
            f"{layer['error_before']:.4f}",
            f"{layer['error_after']:.4f}" if layer["ridge"] is not None else "left alone",
            "" if layer["ridge"] is None else f"{layer['ridge']:.2g}",
            "" if layer["drift"] is None else f"{layer['drift']:g}",
            str(len(layer["unreached"]) or ""),
        )
        for layer in refitting.layers
    ]
    table(("layer", "held-out error", "refitted", "ridge", "drift", "experts no token reached"), rows)
    if cut := [str(layer["layer"]) for layer in refitting.layers if not layer.get("converged", True)]:
        out(f"note: in layers {', '.join(cut)} a solution was cut short before it came to rest; it is only near.")
    show_verdict(refitting.facts())
    written(arguments)


def show_verdict(facts: Mapping[str, Any]) -> None:
    """Of the facts of refit.json: the losses before and after, who judged, and whether weights were changed."""
    loss = facts["loss"]
    between = loss["difference"]
    gained = "" if between is None else f"{between['mean']:+.4f} ({between['low']:+.4f} to {between['high']:+.4f})"
    table(
        (f"on {loss['tokens']:,} other tokens", "nats per token", "KL to the parent", ""),
        [
            ("unpruned", f"{loss['unpruned']:.4f}", "", ""),
            ("pruned", f"{loss['pruned']:.4f}", f"{loss['kl_to_parent']['pruned']:.4f}", ""),
            ("refitted", f"{loss['refitted']:.4f}", f"{loss['kl_to_parent']['refitted']:.4f}", gained),
        ],
    )
    out(_who_judged(facts["data"]))
    if of_sources := loss.get("by_source"):
        out("refitted - pruned: " + ", ".join(f"{source} {gain:+.4f}" for source, gain in of_sources.items()))
    if facts["accepted"]:
        fitted = sum(layer["ridge"] is not None for layer in facts["layers"])
        out(f"refit accepted: the loss fell there; {fitted} of {len(facts['layers'])} layers were changed")
    else:
        out(f"refit refused: {_why_not(loss)}, so no weight was changed. More --tokens may do, or --smallest-ridge 3.")


def _why_not(loss: Mapping[str, Any]) -> str:
    """Why a refit was not accepted."""
    lost = [source for source, gain in (loss.get("by_source") or {}).items() if gain > 0]
    return f"the loss rose on {', '.join(lost)}" if lost else "the loss did not fall for certain there"


def _who_judged(data: Mapping[str, Any]) -> str:
    """Whether what chose and judged was of other sources than what was fitted."""
    if data["held_out_by"] == "source":
        fitted, chosen_by, judged_by = (", ".join(data[role]) for role in ("fitted", "chosen_by", "judged_by"))
        return f"fitted on {fitted}; settings chosen on {chosen_by}; judged on {judged_by}"
    if "judge" in data:
        return (
            f"fitted on text that the model wrote itself, which chose settings too; judged on such text and on "
            f"{data['judge']} text ({', '.join(data['judged_by'])})"
        )
    return (
        "note: what chose and judged are other documents of the fitted sources, as too few sources are told apart; "
        "text of another kind can lose. Give --data more files, or documents with a field 'source'."
    )


def show_calibration(evidence: Evidence, arguments: dict[str, Any]) -> None:
    """What was watched, and how unevenly the router chooses."""
    settings = evidence.settings
    if "statistics" in settings:
        out(f"of {printable(settings['statistics'])}: {', '.join(evidence.signals)}")
        written(arguments)
        return
    watched = [*settings.get("fitted", ()), *settings.get("chosen_by", ())] or settings["sources"]
    out(f"{settings['tokens']:,} tokens of {', '.join(watched)}, in windows of {settings['window']}")
    if judged_by := settings.get("judged_by"):
        out(f"not of {', '.join(judged_by)}, which can judge what is chosen by them")
    rows = []
    for layer, share in evidence.signals["frequency"].items():
        largest = evidence.signals["largest-activation"][layer]
        rows.append(
            (
                str(layer),
                f"{share.min():.2%} to {share.max():.2%}",
                str(int((share == 0).sum()) or ""),
                f"{largest.max():.3g} of expert {int(largest.argmax())}",
            )
        )
    table(("layer", "share of the choices", "experts no token reached", "largest output"), rows)
    if outlying := super_experts(evidence):
        out(f"super experts, which criteria of tokens keep: {of_layers(listed(outlying))}")
    written(arguments)
