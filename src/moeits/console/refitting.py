"""A calibration and a refit, as a person sees it."""

from typing import Any

from moeits.console import out, table, written
from moeits.evidence import Evidence
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
    loss = refitting.loss
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
    if refitting.accepted:
        out("note: those tokens are of the fitted sources; text of another kind can lose, so evaluate it as well.")
    else:
        out("note: the held-out loss did not fall for certain, so no weight was changed. More --tokens may do.")
    written(arguments)


def show_calibration(evidence: Evidence, arguments: dict[str, Any]) -> None:
    """What was watched, and how unevenly the router chooses."""
    settings = evidence.settings
    out(f"{settings['tokens']:,} tokens of {', '.join(settings['sources'])}, in windows of {settings['window']}")
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
    written(arguments)
