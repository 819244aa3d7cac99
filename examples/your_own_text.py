"""Keep the experts that your own text needs: calibrate on it, plan, prune, and refit on the same text.

    python examples/your_own_text.py MODEL text.jsonl SMALLER

One document a line, in the field `text`; a field `source` tells kinds of text apart, and then other kinds than the
fitted ones choose and judge.
"""

import sys

import moeits


def main(model: str, text: str, output: str) -> None:
    """Print which experts the text never reached, and whether the refit was accepted."""
    signals = moeits.calibrate(model, data=text, tokens=8192)
    for layer, share in signals.signals["frequency"].items():
        print(f"layer {layer}: {int((share == 0).sum())} experts saw no token of this text")

    plan = moeits.plan(signals, criterion="reconstruction", reduction=0.5)
    pruned = f"{output}.pruned"
    moeits.prune(model, plan=plan, output=pruned)
    refit = moeits.refit(pruned, parent=model, data=text, tokens=8192, output=output)
    print(f"refit accepted: {refit.accepted}; loss {refit.loss['pruned']:.3f} -> {refit.loss['refitted']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
