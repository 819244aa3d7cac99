"""The pair loop on a device of torch: the same counts, and so the same scores to the last bit.

A joint histogram is counted there; what comes back is how many of its cells hold each count, which is all that its
entropy depends on. The terms are then summed here, by the CPU's own logarithm, as integers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from moeits.errors import SettingError
from moeits.signals import PairSignal
from moeits.signals.nmi import NMI, Codes

# Cells of a joint histogram that are counted at once, eight bytes each; of larger ones some rows at a time.
CELLS = 32 << 20


@dataclass(frozen=True, kw_only=True)
class DeviceCodes(Codes):
    """One weight as the numbers of its occupied bins, on the device as well."""

    there: Any
    """(N,) int16 tensor: the sixteen bits of each of `codes`."""


@dataclass(frozen=True, kw_only=True)
class DeviceNMI(NMI):
    """`NMI` whose pairs are counted on a device. Weights are read and binned on the CPU."""

    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `NMI`: where pairs are counted changes no score."""
        return _as_nmi(self).settings

    def encode_weight(self, weight: np.ndarray) -> DeviceCodes:
        """Bin one weight, and copy its codes to the device. Raises what `NMI.encode_weight` raises."""
        import torch

        found = _as_nmi(self).encode_weight(weight)
        there = torch.from_numpy(found.codes.view(np.int16)).to(self.device)
        return DeviceCodes(codes=found.codes, counts=found.counts, entropy=found.entropy, there=there)

    def joint_sum(self, a: Codes, b: Codes) -> float:
        from moeits.signals.joint_counts import sum_over_counts

        assert isinstance(a, DeviceCodes)
        assert isinstance(b, DeviceCodes)
        counted = counts_of_counts(a.there, b.there, a.counts.size, b.counts.size)
        return sum_over_counts(counted, a.codes.size)


def on_device(signal: PairSignal | None, device: str) -> PairSignal:
    """A signal whose pairs are counted on a device of torch. Raises SettingError for one that cannot be."""
    if type(signal) is not NMI:
        raise SettingError(
            f"--device {device} counts pairs of --estimator nmi, all entries of them. Leave --device out for "
            f"{'a sample' if isinstance(signal, NMI) else signal.name if signal else 'none'}."
        )
    return DeviceNMI(**asdict(signal), device=device)


def counts_of_counts(a: Any, b: Any, bins_a: int, bins_b: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of the joint histogram of two weights, rows of it at a time: the different counts of its cells, ascending, and
    how many cells have each; (D,) int64.

    `a`, `b`: (N,) int16 tensors, the bits of codes below `bins_a` and `bins_b`.
    """
    import torch

    rows, columns = (codes.to(torch.int32) & 0xFFFF for codes in (a, b))
    band = max(1, min(bins_a, CELLS // bins_b))
    for low in range(0, bins_a, band):
        here, beside = rows, columns
        if band < bins_a:
            within = (rows >= low) & (rows < low + band)
            here, beside = rows[within] - low, columns[within]
        table = torch.bincount(here * bins_b + beside, minlength=min(band, bins_a - low) * bins_b)
        counts, times = torch.unique(table, return_counts=True)
        yield counts.cpu().numpy(), times.cpu().numpy()


def _as_nmi(signal: DeviceNMI) -> NMI:
    return NMI(**{each.name: getattr(signal, each.name) for each in fields(NMI)})
