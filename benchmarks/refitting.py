"""Calibrate and refit one layer of full size, beside what the machine's own matrix product does.

The experts of a layer share one expert's memory here, so that Mixtral's fit a small machine; what they would take in
float32 is told. Times are those of one thread's work (CPU seconds), which a busy machine does not stretch. Run as
`python -m benchmarks.refitting ["DeepSeek-V2-Lite" 4096]`: each case is a process of its own, whose peak is told.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.measuring import table
from moeits.calibration.activations import Activations
from moeits.calibration.routing import Sums, _gram, backward_elimination
from moeits.refitting.features import ExpertFeatures, Routed, down_of
from moeits.refitting.layer import LayerData, _HeldOut
from moeits.refitting.memory import room_bytes
from moeits.refitting.ridge import LayerProblem
from moeits.refitting.settings import DRIFTS
from moeits.refitting.solvers import solver_for

# Experts, those that stay, top_k, I, H, layers.
SHAPES = {"DeepSeek-V2-Lite": (64, 32, 6, 1408, 2048, 26), "Mixtral 8x7B": (8, 4, 2, 14336, 4096, 32)}
TOKENS = (4096, 16384)
CHOOSING, SELECTION, RIDGES, MEMORY = 4096, 4096, 6, 4 << 30
# Of the tokens of a selection, those that are measured: the Gram matrices of tokens are made 512 at a time.
_PART = 512
CASES = [(name, tokens) for name in SHAPES for tokens in TOKENS]


def run() -> str:
    rows = [row for name, tokens in CASES for row in _in_a_process(name, tokens)]
    header = ("", "tokens", "step", "CPU s", "Tflop", "Gflop/s", "of the matrix product", "peak, GiB", "experts, GiB")
    return table(header, rows)


def _in_a_process(name: str, tokens: int) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.refitting", name, str(tokens)], capture_output=True, text=True, check=True
    )
    return [line.split("|") for line in done.stdout.splitlines()]


class Case:
    """One layer."""

    def __init__(self, name: str, tokens: int) -> None:
        self.name, self.tokens = name, tokens
        self.experts, self.kept, self.top_k, self.width, self.hidden, self.layers = SHAPES[name]
        self.random = torch.Generator().manual_seed(0)
        self.product = _product_speed()
        up, down = self._normal(1, 2 * self.width, self.hidden), self._normal(1, self.hidden, self.width)
        self.stock: Any = SimpleNamespace(
            gate_up_proj=up.mul_(self.hidden**-0.5).expand(self.experts, -1, -1),
            down_proj=down.mul_(self.width**-0.5).expand(self.experts, -1, -1),
            is_transposed=False,
            has_bias=False,
            _apply_gate=lambda wide: torch.nn.functional.silu(wide[:, : self.width]) * wide[:, self.width :],
        )
        self.pass_flops = 6 * self.width * self.hidden
        """Of one token through one expert."""

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def routed(self, tokens: int, experts: int) -> Routed:
        """Tokens that go to random experts, equally often."""
        return Routed(
            hidden=self._normal(tokens, self.hidden),
            chosen=torch.rand(tokens, experts, generator=self.random).topk(self.top_k).indices,
            gates=torch.full((tokens, self.top_k), 1 / self.top_k),
            weight=torch.ones(tokens),
        )

    def row(self, step: str, seconds: float, flops: float) -> None:
        """Print one row."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        weights = self.experts * 3 * self.width * self.hidden * 4 / 2**30
        speed = flops / seconds
        facts = (f"{seconds:.1f}", f"{flops / 1e12:.2f}", f"{speed / 1e9:.0f}", f"{speed / self.product:.0%}")
        print("|".join((self.name, f"{self.tokens:,}", step, *facts, f"{peak:.1f}", f"{weights:.1f}")), flush=True)

    def calibrate(self) -> None:
        """Sums over all tokens, and the selection."""
        seen: Any = self.routed(self.tokens, self.experts)
        live: Any = SimpleNamespace(experts=self.stock)
        taken = _seconds(lambda: Sums(self.experts).take(live, seen))
        self.row("calibrate: sums", taken, self.tokens * self.top_k * self.pass_flops)
        products = _seconds(lambda: _gram(self.stock, seen.hidden[:_PART]))
        scale = SELECTION / _PART
        flops = self.experts * self.pass_flops + 2 * self.experts**2 * self.hidden
        self.row("calibrate: products of outputs", scale * products, SELECTION * flops)
        gram = torch.rand(_PART, self.experts, self.experts, generator=self.random)
        gram = gram @ gram.transpose(1, 2)
        choosing = _AnyRouter(self.routed(_PART, self.experts), self.experts)
        order = _seconds(lambda: backward_elimination(gram, choosing, least=self.top_k))  # type: ignore[arg-type]
        tried = sum(range(self.top_k + 1, self.experts + 1))
        self.row("calibrate: elimination", scale * order, tried * SELECTION * 2.0 * self.experts**2)

    def refit(self) -> None:
        """What is made once, what each ridge takes, and the weights of the best; in the room that the product has."""
        least = room_bytes(MEMORY, width=self.width, hidden=self.hidden, tokens=self.tokens)
        with TemporaryDirectory() as folder, Activations(most_bytes=least, beside=Path(folder)) as room:
            self._refit(room)

    def _refit(self, room: Activations) -> None:
        fit, other = (self._data(tokens) for tokens in (self.tokens, CHOOSING))
        old = {e: down_of(self.stock, e) for e in range(self.kept)}
        made: list[Any] = []

        def begin() -> None:
            features = ExpertFeatures(self.stock, fit.routed, room)
            problem = LayerProblem(features, old, (fit.at_hand, fit.back), room)
            judge = _HeldOut(other, self.stock, old, room)
            made.extend((problem, judge, solver_for(problem, judge.features, room)))

        began = _seconds(begin)
        problem, judge, solver = made
        self.row("refit: once", began, self._once())
        ridge = _seconds(lambda: (solver.solve(problem.mean_diagonal), judge.errors(solver.moved, DRIFTS)))
        self.row(f"refit: each of about {RIDGES} ridges, {type(solver).__name__}", ridge, self._each())
        solver.keep(0.5)
        self.row("refit: the weights", _seconds(lambda: [None for _ in solver.weights()]), self._weights())

    def _data(self, tokens: int) -> LayerData:
        wanted = self._normal(tokens, self.hidden)
        source = torch.zeros(tokens, dtype=torch.long)
        return LayerData(routed=self.routed(tokens, self.kept), at_hand=wanted, back=wanted + 1, source=source)

    def _once(self) -> float:
        """Features of both parts and what old weights give of them, products of the tokens of both."""
        fit, other = self.tokens * self.top_k, CHOOSING * self.top_k
        return (fit + other) * self.pass_flops + self.width * fit * (fit + 2 * other) / self.kept

    def _each(self) -> float:
        """A factor, its solution for the smaller side, and what the others' outputs move by."""
        tokens, targets = float(self.tokens), 2.0 * self.hidden
        return tokens**3 / 3 + 2 * tokens**2 * min(CHOOSING, targets) + 2 * CHOOSING * tokens * targets

    def _weights(self) -> float:
        """A factor, its solution for one target, and the weights of that."""
        tokens = float(self.tokens)
        return tokens**3 / 3 + 2 * tokens**2 * self.hidden + 2 * tokens * self.top_k * self.width * self.hidden


class _AnyRouter:
    """A router that sends tokens of removed experts to the first that are left."""

    def __init__(self, routed: Routed, experts: int) -> None:
        self._gates = torch.zeros(len(routed.chosen), experts).scatter_(1, routed.chosen, routed.gates)

    def weights(self, kept: list[int]) -> torch.Tensor:
        """(T, E)"""
        ids = torch.tensor(kept)
        return torch.zeros_like(self._gates).index_copy_(1, ids, self._gates[:, ids])


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _product_speed() -> float:
    """Floating-point operations a second of a large float32 matrix product, the best of five."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2 * 2048**3 / min(_seconds(lambda: a @ b) for _ in range(5))


def one_case(name: str, tokens: int) -> None:
    """What one case takes, in a process of its own."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    case = Case(name, tokens)
    case.calibrate()
    case.refit()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="one case alone, with its number of tokens")
    parser.add_argument("tokens", nargs="?", type=int)
    asked = parser.parse_args(argv)
    if asked.tokens is None:
        print(run())
    else:
        one_case(asked.case, asked.tokens)


if __name__ == "__main__":
    main()
