"""The signals that a scoring is asked for, and whether what lies on a disk can be all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeits.evidence import error_of
from moeits.experts.layout import MoELayout
from moeits.signals import EstimatedSignal, ExpertSignal, PairSignal
from moeits.signals.settings import Scoring


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The signals that a scoring is asked for, set up for one model."""

    redundancy: PairSignal | None
    """None where only others are measured."""
    beside: tuple[PairSignal | ExpertSignal, ...]
    diagonal: str

    @classmethod
    def of(cls, scoring: Scoring, layout: MoELayout) -> "Wanted":
        model = (tuple(layout.architecture.projection_names), layout.architecture.model_type)
        scoring.measured()
        redundancy = scoring.redundancy()
        return cls(
            redundancy=redundancy and redundancy.for_model(*model),
            beside=tuple(signal.for_model(*model) for signal in scoring.beside()),
            diagonal=scoring.diagonal,
        )

    @property
    def signals(self) -> tuple[PairSignal | ExpertSignal, ...]:
        """All of them, the redundancy first."""
        return (*((self.redundancy,) if self.redundancy else ()), *self.beside)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of all signals, defaults included, as the evidence keeps them."""
        settings = {**(self.redundancy.settings if self.redundancy else {}), "diagonal": self.diagonal}
        for signal in self.beside:
            settings |= signal.settings
        return settings | ({"signals": [signal.name for signal in self.beside]} if self.beside else {})

    def names_beside(self) -> list[str]:
        """What the evidence of a layer holds beside redundancy and floor."""
        errors = [error_of("redundancy")] if isinstance(self.redundancy, EstimatedSignal) else []
        for signal in self.beside:
            errors += [error_of(signal.name)] if isinstance(signal, EstimatedSignal) else []
        return [*(signal.name for signal in self.beside), *errors]

    def are_whole(self, arrays: Mapping[str, np.ndarray], experts: int) -> bool:
        """Whether these arrays can be the signals of a layer, all of them: what lies on a disk may be damaged."""
        pairs, single = (experts, experts), (experts,)
        of_experts = {each.name for each in self.beside if isinstance(each, ExpertSignal)}
        shapes = {name: single if name in of_experts else pairs for name in self.names_beside()}
        shapes |= ({"redundancy": pairs} if self.redundancy else {}) | ({"floor": pairs} if "floor" in arrays else {})
        return {name: values.shape for name, values in arrays.items()} == shapes and all(
            values.dtype == np.float64
            and np.isfinite(values).all()
            and (values.ndim == 1 or (np.array_equal(values, values.T) and not values.diagonal().any()))
            for values in arrays.values()
        )
