"""Does a refit of attention's output projections help beside that of the experts'? What each leaves of the loss.

    python -m experiments.attention_output ../shared/models/moe-tiny-qwen2moe \
        --perplexity ../shared/data/text/valid.jsonl

In each layer of a pruned model attention's output projection is fitted first, by ridge regression on what brings the
residual stream after attention back to the unpruned model's; then the experts, as `moeits refit` does. Ridge and the
strength of that correction are those that leave least on tokens that choose. All is self-written but what judges.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moeits
from moeits.calibration.activations import Activations
from moeits.calibration.layered import LayeredModel, LiveLayer
from moeits.calibration.settings import Machine, Tokens
from moeits.calibration.texts import judged_on, windows_of
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.finished import workplace
from moeits.progress import silent
from moeits.refitting.settings import DRIFTS, Fitting
from moeits.refitting.streams import Refit
from moeits.stages.calibrate import SELECTION, calibrated
from moeits.stages.compare import RESAMPLES, paired_interval
from moeits.surgery.unwritten import unwritten

_RIDGES = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint whose layers have self_attn.o_proj and post_attention_layernorm")
    parser.add_argument("--perplexity", required=True, help="text that judges")
    parser.add_argument("--reduction", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=128)
    asked = parser.parse_args(argv)
    checkpoint = Checkpoint.open(asked.model)
    texts = Tokens(data="self", tokens=asked.tokens, window=asked.window)
    watched = windows_of(checkpoint, texts, silent)
    windows = judged_on(asked.perplexity, watched, checkpoint, texts)
    with workplace(None, progress=silent) as place:
        evidence = calibrated(checkpoint, place, watched, Machine(), Opening(), SELECTION, silent)
    plan = moeits.plan(evidence, reduction=asked.reduction, criterion="reconstruction")
    pruned = unwritten(checkpoint, plan)
    first: dict[str, np.ndarray] = {}
    for name, kind in (("experts alone", Refit), ("attention's output too", WithAttention)):
        with tempfile.TemporaryDirectory() as folder:
            losses, fits = _refitted(kind, checkpoint, pruned, windows, Path(folder))
        print(*fits, sep="\n", end="\n" if fits else "")
        for than, nats in {"unpruned": losses["unpruned"], **first}.items():
            difference = losses["refitted"] - nats
            low, high = paired_interval(difference, np.ones(len(difference)), RESAMPLES, np.random.default_rng(0))
            print(f"{name} - {than}: {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})")
        first[name] = losses["refitted"]


def _refitted(
    kind: type[Refit], whole: Checkpoint, pruned: Checkpoint, windows: Any, folder: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Nats of the windows that judge, and how attention was fitted."""
    fitting = Fitting()
    with Activations(most_bytes=1 << 31, beside=folder) as room:
        run = kind(
            LayeredModel(whole),
            LayeredModel(pruned),
            windows,
            room,
            drifts=fitting.drifts,
            largest_ridge=fitting.largest_ridge,
            smallest_ridge=fitting.smallest_ridge,
            shared=fitting.shared,
            beside=folder,
            most_bytes=1 << 32,
        )
        for i in range(len(run.first.model)):
            run.layer(i, lambda layer, expert, weight: weight)  # noqa: ARG005
        losses = run.losses(silent)
    told = {name: np.array(values)[windows.telling] for name, values in losses["nats"].items()}
    return told, getattr(run, "said", [])


class WithAttention(Refit):
    """A refit that fits attention's output projection of a layer before its experts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.said: list[str] = []
        self._wanted: torch.Tensor | None = None

    @torch.no_grad()
    def layer(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """Run layer `i`; what the unpruned model has after attention is found before it is moved on."""
        with self.first.model.layer(i) as whole:
            self._wanted = torch.cat([_after_attention(whole, self.first, i, part)[0] for part in self.first.parts()])
        return super().layer(i, *args, **kwargs)

    def _fit(self, i: int, whole: LiveLayer, live: LiveLayer, store: Any) -> Any:
        seen = [_after_attention(live, self.second, i, part) for part in self.second.parts()]
        after, inputs = (torch.cat(each) for each in zip(*seen, strict=True))
        assert self._wanted is not None
        error, cut = self._wanted - after, self.windows.fit.size
        end = cut + self.windows.choosing.size
        weight = 1 / self._wanted.square().mean(1).clamp(min=1e-12)
        change, said = _best(inputs[:end], error[:end], weight[:end], cut)
        self.said.append(f"layer {i}: {said}")
        if change is not None:
            # In the unpruned layer too, so that its experts are asked for what they would do here.
            for each in (live, whole):
                _output_of(each).weight += change
        return super()._fit(i, whole, live, store)


def _best(inputs: torch.Tensor, error: torch.Tensor, weight: torch.Tensor, cut: int) -> tuple[torch.Tensor | None, str]:
    """The change of a projection (outputs, inputs) that leaves least of the error after `cut`, and what it leaves."""
    root = weight.sqrt()[:, None].double()
    x, y = inputs.double() * root, error.double() * root
    gram, cross = x[:cut].T @ x[:cut], x[:cut].T @ y[:cut]
    whole = float(y[cut:].square().sum())
    best, least, said = None, whole, "left alone"
    for ridge in _RIDGES:
        unit = ridge * float(gram.diagonal().mean())
        solved = torch.linalg.solve(gram + unit * torch.eye(len(gram), dtype=gram.dtype), cross)
        given = x[cut:] @ solved
        for share in DRIFTS:
            left = float((y[cut:] - share * given).square().sum())
            if left < least:
                best, least, said = share * solved.T, left, f"ridge {ridge:g}, {share:g} of it: {left / whole:.3f} left"
    return (None if best is None else best.float()), said


def _output_of(live: LiveLayer) -> Any:
    return live.module.get_submodule("self_attn.o_proj")


@contextmanager
def _watched(live: LiveLayer) -> Iterator[dict[str, torch.Tensor]]:
    seen: dict[str, torch.Tensor] = {}

    def into(name: str) -> Any:
        return lambda module, args: seen.update({name: args[0].flatten(0, -2)})  # noqa: ARG005

    handles = [
        _output_of(live).register_forward_pre_hook(into("inputs")),
        live.module.get_submodule("post_attention_layernorm").register_forward_pre_hook(into("after")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _after_attention(live: LiveLayer, stream: Any, i: int, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, H) the residual stream after attention, and (T, heads) what goes into attention's output projection."""
    with _watched(live) as seen:
        stream.run(live, i, part)
    return seen["after"], seen["inputs"]


if __name__ == "__main__":
    main()
