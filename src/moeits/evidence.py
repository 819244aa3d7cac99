"""What scoring found: one redundancy matrix per MoE layer, with all that planning needs to know of the checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import EvidenceError
from moeits.experts.layout import ExpertSizes, MoELayout
from moeits.files import write_whole

FORMAT = 1

# A layer whose highest pair is not this much above independence tells its experts apart by little more than chance.
NOISE_MARGIN = 0.1


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What planning needs to know of one MoE layer."""

    num_experts: int
    top_k: int
    groups: int
    """Groups of experts that limit the choice of the router; 1 where nothing does."""
    sizes: ExpertSizes
    least_per_group: int = 1
    """Experts without which a group, and with it the router, does not work."""

    def floor(self, min_experts: int | None = None) -> int:
        """The fewest experts that the layer may keep: `min_experts`, by default top_k, as whole groups."""
        per_group = max(ceil((min_experts or self.top_k) / self.groups), self.least_per_group)
        return min(per_group * self.groups, self.num_experts)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Redundancy matrices of a checkpoint, and its sizes; read and written as one small safetensors file."""

    model_type: str
    source: str
    fingerprint: str
    estimator: str
    settings: Mapping[str, Any]
    layers: Mapping[int, LayerFacts]
    other_parameters: int
    """Parameters of everything but routed experts and their router rows."""
    other_bytes: int
    redundancy: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Decoder layer -> (E, E) float64, symmetric, diagonal 0. Empty for a criterion that needs no scores."""
    floor: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Decoder layer -> (E, E) float64: the redundancy expected if the experts were independent."""

    @classmethod
    def without_scores(cls, checkpoint: Checkpoint, layout: MoELayout) -> "Evidence":
        """The facts of a checkpoint alone, without its scores: all that a random choice needs."""
        layers = layer_facts(layout)
        routed = [(f.num_experts, f.sizes) for f in layers.values()]
        return cls(
            model_type=layout.architecture.model_type,
            source=checkpoint.source,
            fingerprint=checkpoint.fingerprint,
            estimator="none",
            settings={},
            layers=layers,
            other_parameters=checkpoint.parameters - sum(n * (s.parameters + s.router_parameters) for n, s in routed),
            other_bytes=checkpoint.nbytes - sum(n * (s.nbytes + s.router_nbytes) for n, s in routed),
        )

    def above_noise(self) -> dict[str, Any]:
        """How far each layer's redundancy stands above the noise floor, what independent weights would show."""
        layers = {}
        for layer, redundancy in self.redundancy.items():
            pairs = np.triu_indices(len(redundancy), 1)
            values, floor = redundancy[pairs], self.floor.get(layer, np.zeros_like(redundancy))[pairs]
            # An expert of constant weights has no floor, an unbiased estimator has none anywhere.
            values, floor = values[floor > 0], floor[floor > 0]
            if floor.size:
                layers[layer] = {
                    "mean": float(values.mean()),
                    "max": float(values.max()),
                    "noise_floor": float(floor.mean()),
                    "max_over_noise_floor": float((values / floor).max()),
                }
        on_floor = [layer for layer, facts in layers.items() if facts["max_over_noise_floor"] < 1 + NOISE_MARGIN]
        return {"redundancy": {str(layer): facts for layer, facts in layers.items()}, "layers_on_noise_floor": on_floor}

    def facts(self) -> dict[str, Any]:
        """What there is to say of the evidence without its matrices, as a JSON value."""
        return {
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "estimator": self.estimator,
            "settings": dict(self.settings),
            **self.above_noise(),
        }

    def save(self, path: str | Path) -> None:
        """Write the evidence, all or nothing: tensors `layers.<i>.redundancy` and `.floor`, metadata `moeits`."""
        from safetensors.numpy import save

        path = Path(path)
        tensors = {f"layers.{i}.redundancy": matrix for i, matrix in self.redundancy.items()}
        tensors |= {f"layers.{i}.floor": matrix for i, matrix in self.floor.items()}
        facts = {
            "format": FORMAT,
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "estimator": self.estimator,
            "settings": dict(self.settings),
            "layers": {str(i): asdict(facts) for i, facts in self.layers.items()},
            "other_parameters": self.other_parameters,
            "other_bytes": self.other_bytes,
        }
        write_whole(path, save(tensors, metadata={"moeits": json.dumps(facts)}))

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read evidence back. Raises EvidenceError if the file is not evidence, or of a newer format."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["moeits"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if facts["format"] != FORMAT:
                raise EvidenceError(f"{path} has format {facts['format']}; this moeits reads format {FORMAT}.")
            return cls._from_facts(facts, tensors)
        except EvidenceError:
            raise
        except FileNotFoundError:
            raise EvidenceError(
                f"There is no evidence {path}. Make it with: moeits score MODEL --output {path}"
            ) from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EvidenceError(
                f"{path} is no evidence that moeits score wrote ({error}). Score the model again."
            ) from None

    @classmethod
    def _from_facts(cls, facts: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> "Evidence":
        facts.pop("format")
        layers = {
            int(i): LayerFacts(**{**layer, "sizes": ExpertSizes(**layer["sizes"])})
            for i, layer in facts.pop("layers").items()
        }

        def matrices(kind: str) -> dict[int, np.ndarray]:
            found = {i: tensors[f"layers.{i}.{kind}"] for i in layers if f"layers.{i}.{kind}" in tensors}
            for i, matrix in found.items():
                size = layers[i].num_experts
                if matrix.shape != (size, size) or not np.isfinite(matrix).all() or (matrix != matrix.T).any():
                    raise ValueError(f"layers.{i}.{kind} is no symmetric matrix of {size} x {size} numbers")
            return found

        return cls(**facts, layers=layers, redundancy=matrices("redundancy"), floor=matrices("floor"))


def layer_facts(layout: MoELayout) -> dict[int, LayerFacts]:
    """What planning needs to know of each MoE layer of a checkpoint, read off its headers."""
    return {
        i: LayerFacts(
            num_experts=moe.num_experts,
            top_k=moe.top_k,
            groups=moe.groups,
            sizes=moe.sizes,
            least_per_group=moe.least_per_group,
        )
        for i, moe in layout.layers.items()
    }
