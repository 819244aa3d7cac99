"""What scoring found: one redundancy matrix per MoE layer, with all that planning needs to know of the checkpoint."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct, to_builtins

from moeits.checkpoint.fingerprints import Coverage
from moeits.errors import EvidenceError
from moeits.experts.families import Architecture
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.files import write_whole
from moeits.notebook import SCORED_COLUMNS, html_table, scored_row
from moeits.signals import PAIR_SIGNALS
from moeits.signals.watched import VECTORS
from moeits.typed_json import Count, NotOfItsType, decode_typed

FORMAT = 1

# Which shard of a scoring it is, among the settings; not there if it is the whole.
SHARD = "shard"


def error_of(name: str) -> str:
    """The name of the standard errors of a signal, or of "redundancy", where it was estimated."""
    return f"{name}-error"


# A layer whose highest pair is not this much above independence tells its experts apart by little more than chance.
NOISE_MARGIN = 0.1


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the experts of a checkpoint; read and written as one small safetensors file."""

    inventory: Inventory
    estimator: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    redundancy: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Decoder layer -> (E, E) float64, symmetric, diagonal 0. Empty for a criterion that needs no scores."""
    floor: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Decoder layer -> (E, E) float64: the redundancy expected if the experts were independent."""
    signals: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)
    """Name of a signal -> decoder layer -> (E, E) or (E,): what else is known of pairs, or of single experts."""

    def _repr_html_(self) -> str:
        """Each layer with its experts' redundancy beside what independent weights would show, for a notebook."""
        caption = f"{self.source}, scored by {self.estimator}{''.join(f', {name}' for name in self.signals)}"
        rows = (scored_row(i, f.num_experts, self.redundancy.get(i), self.floor.get(i)) for i, f in self.layers.items())
        return html_table(caption, SCORED_COLUMNS, rows)

    def known(self, name: str) -> Mapping[int, np.ndarray]:
        """What is known by that name, "redundancy" or a signal: decoder layer -> (E, E) or (E,); empty if nothing."""
        return self.redundancy if name == "redundancy" else self.signals.get(name, {})

    def of_experts(self, name: str) -> Mapping[int, np.ndarray]:
        """What is known of single experts by that name: layer -> (E,). Raises EvidenceError if it is of pairs."""
        return self._of_rank(name, 1, "expert")

    def of_pairs(self, name: str) -> Mapping[int, np.ndarray]:
        """What is known of pairs by that name: layer -> (E, E). Raises EvidenceError if it is of single experts."""
        return self._of_rank(name, 2, "pair of experts")

    def _of_rank(self, name: str, rank: int, each: str) -> Mapping[int, np.ndarray]:
        for layer, values in self.known(name).items():
            if values.ndim != rank:
                raise EvidenceError(
                    f"{name} of layer {layer} has {' x '.join(map(str, values.shape))} numbers in the evidence, where "
                    f"there should be one for each {each}. Make the evidence again."
                )
        return self.known(name)

    @property
    def layers(self) -> Mapping[int, LayerFacts]:
        return self.inventory.layers

    @property
    def source(self) -> str:
        return self.inventory.source

    @property
    def model_type(self) -> str:
        return self.inventory.model_type

    @property
    def fingerprint(self) -> str:
        return self.inventory.fingerprint

    @property
    def errors(self) -> Mapping[int, np.ndarray]:
        """Decoder layer -> (E, E): standard errors of the redundancy; empty if it is exact."""
        return self.signals.get(error_of("redundancy"), {})

    def above_noise(self) -> dict[str, Any]:
        """How far each layer's redundancy stands above the noise floor, what independent weights would show.

        Of estimates `max_over_noise_floor` is what is certain of the highest pair: chance alone puts one of that many
        pairs there in one layer of twenty.
        """
        layers = {}
        for layer, redundancy in self.redundancy.items():
            pairs = np.triu_indices(len(redundancy), 1)
            values, floor = redundancy[pairs], self.floor.get(layer, np.zeros_like(redundancy))[pairs]
            # An expert of constant weights has no floor, an unbiased estimator has none anywhere.
            errors = self.errors.get(layer, np.zeros_like(redundancy))[pairs][floor > 0]
            values, floor = values[floor > 0], floor[floor > 0]
            if floor.size:
                certain = values - NormalDist().inv_cdf(1 - 0.05 / floor.size) * errors
                layers[layer] = {
                    "mean": float(values.mean()),
                    "max": float(values.max()),
                    "noise_floor": float(floor.mean()),
                    "max_over_noise_floor": float((certain / floor).max()),
                    **({"standard_error": float(np.sqrt(np.mean(errors**2)))} if layer in self.errors else {}),
                }
        on_floor = [layer for layer, facts in layers.items() if facts["max_over_noise_floor"] < 1 + NOISE_MARGIN]
        return {"redundancy": {str(layer): facts for layer, facts in layers.items()}, "layers_on_noise_floor": on_floor}

    def facts(self) -> dict[str, Any]:
        """What there is to say of the evidence without its matrices, as a JSON value."""
        return {
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            **self._coverage(),
            "estimator": self.estimator,
            "settings": dict(self.settings),
            **self.above_noise(),
        }

    def _coverage(self) -> dict[str, Any]:
        coverage = self.inventory.coverage
        return {} if coverage is None else {"coverage": coverage.facts()}

    def save(self, path: str | Path) -> None:
        """Write the evidence, all or nothing: tensors `layers.<i>.redundancy`, `.floor` and `.<name of a signal>`,
        metadata `moeits`."""
        from safetensors.numpy import save

        path = Path(path)
        tensors = {f"layers.{i}.redundancy": matrix for i, matrix in self.redundancy.items()}
        tensors |= {f"layers.{i}.floor": matrix for i, matrix in self.floor.items()}
        for name, by_layer in self.signals.items():
            tensors |= {f"layers.{i}.{name}": values for i, values in by_layer.items()}
        facts = {
            "format": FORMAT,
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            **self._coverage(),
            **({} if self.inventory.family is None else {"family": to_builtins(self.inventory.family)}),
            "estimator": self.estimator,
            "settings": dict(self.settings),
            "layers": {str(i): asdict(facts) for i, facts in self.layers.items()},
            "other_parameters": self.inventory.other_parameters,
            "other_bytes": self.inventory.other_bytes,
            "tensors_sha256": _sha256(tensors),
        }
        write_whole(path, save(tensors, metadata={"moeits": json.dumps(facts)}))

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read evidence back. Raises EvidenceError if the file is not evidence, of a newer format, or was changed."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise EvidenceError(
                f"There is no evidence {path}. Make it with: moeits score MODEL --output {path}"
            ) from None
        # What safetensors makes of a dtype that NumPy has not is anything, a TypeError or an AttributeError among it.
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            wrong = f"{_line(error)}. Score the model again"
            if Path(path).suffix == ".json":
                wrong = "it is JSON, such as a plan. Give the .safetensors file of moeits score or calibrate"
            raise EvidenceError(f"{path} cannot be read: {wrong}.") from None
        try:
            return _decoded(metadata, tensors)
        except NotOfItsType as error:
            raise EvidenceError(
                f"{path} is not evidence that moeits score wrote: {error}. Score the model again."
            ) from None


def estimated(settings: Mapping[str, Any], above_noise: Mapping[str, Any]) -> str | None:
    """That redundancies are estimates, and how far off: of `settings` and `above_noise` of evidence or of a plan.

    None where they are exact, or nothing is chosen by them.
    """
    by_layer = above_noise.get("redundancy")
    layers = by_layer.values() if isinstance(by_layer, Mapping) else ()
    errors = [facts.get("standard_error") for facts in layers if isinstance(facts, Mapping)]
    known = [error for error in errors if isinstance(error, float)]
    if not known:
        return None
    least, most = f"{min(known):.2g}", f"{max(known):.2g}"
    return (
        f"scores are estimated from {sampled_words(settings.get('sample'))}, with a standard error of "
        f"{least if least == most else f'{least} to {most}'} (the mean of a layer)"
    )


def sampled_words(sample: object) -> str:
    """A sample as evidence and plans keep it, as words."""
    if isinstance(sample, int) and not isinstance(sample, bool):
        return f"{sample:,} entries of each weight"
    if not isinstance(sample, float):
        return "a sample of the entries"
    share = Fraction(sample).limit_denominator(1000)
    return f"{share if share.numerator == 1 else format(sample, '.3g')} of the entries"


def merged(several: Sequence[Evidence]) -> Evidence:
    """Evidence of one checkpoint from several scorings: the first, with what the others know beside it.

    Raises EvidenceError if they are of different checkpoints, two of them measured the redundancy, or one is a shard.
    """
    if not several:
        raise EvidenceError("There is no evidence: give at least one file that moeits score wrote.")
    if any(SHARD in each.settings for each in several):
        raise EvidenceError(
            "This evidence is a shard of a scoring. Put all of them together first, with moeits gather."
        )
    first = max(several, key=lambda each: bool(each.redundancy))
    for other in several:
        if other.fingerprint != first.fingerprint:
            raise EvidenceError(
                f"The evidence is of two checkpoints: {first.source} ({first.fingerprint[:12]}) and {other.source} "
                f"({other.fingerprint[:12]}). Give files of one."
            )
        if other is not first and other.redundancy:
            raise EvidenceError("Two of the files hold redundancies. Give one of them, and files of other signals.")
    _check_samples(several)
    inventory = replace(first.inventory, coverage=_fullest(several))
    signals = {name: by_layer for each in several for name, by_layer in each.signals.items()}
    settings = {name: value for each in (*several, first) for name, value in each.settings.items()}
    return replace(first, inventory=inventory, signals=signals, settings=settings)


def _check_samples(several: Sequence[Evidence]) -> None:
    """Raises EvidenceError if two of them were scored from different entries: one plan could not say which."""
    scored = [each for each in several if each.redundancy or "nmi" in each.signals]
    samples = {(each.settings.get("sample"), each.settings.get("sample_seed")) for each in scored}
    if len(samples) > 1:
        shown = sorted("exact" if sample is None else f"from {sampled_words(sample)}" for sample, _ in samples)
        raise EvidenceError(
            f"The files were scored from different samples ({', '.join(shown)}). Score them with one --sample and "
            "--sample-seed."
        )


def _fullest(several: Sequence[Evidence]) -> Coverage | None:
    """What is known of the weights by the one that has seen most. Raises EvidenceError if two saw other weights."""
    known = [each.inventory.coverage for each in several if each.inventory.coverage is not None]
    if len({coverage.sha256 for coverage in known if coverage.full}) > 1:
        raise EvidenceError(
            f"The evidence is of two versions of {several[0].source}: the SHA-256 of their weights differ. Give files "
            "of one."
        )
    return max(known, key=lambda coverage: coverage.full, default=None)


def _line(error: object) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:120].rstrip(".")


def _sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all matrices with their names, so that what was changed or mixed up afterwards is noticed."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


_Scalar = str | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | None
_Layer = Annotated[int, Meta(ge=0, le=2**31)]


class _Facts(Struct):
    """Metadata `moeits` of evidence."""

    format: int
    model_type: str
    source: str
    fingerprint: str
    estimator: str
    settings: dict[str, _Scalar | dict[str, _Scalar] | list[_Scalar]]
    layers: dict[_Layer, LayerFacts]
    other_parameters: Count
    other_bytes: Count
    tensors_sha256: str | None = None
    """None in evidence of 0.1, as `coverage`."""
    coverage: Coverage | None = None
    family: Architecture | None = None


def _decoded(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> Evidence:
    """Raises NotOfItsType."""
    if "moeits" not in metadata:
        raise NotOfItsType("it says nothing of itself")
    facts = decode_typed(metadata["moeits"], _Facts)
    if facts.format != FORMAT:
        raise NotOfItsType(f"it has format {facts.format}, and this moeits reads format {FORMAT}")
    if facts.settings.get("diagonal", "zero") not in ("zero", "excluded"):
        raise NotOfItsType("its diagonal is neither zero nor excluded")
    if not facts.layers:
        raise NotOfItsType("it has no layers")
    for i, layer in facts.layers.items():
        if wrong := layer.contradiction():
            raise NotOfItsType(f"of layer {i} it says that {wrong}")
    inventory = Inventory(
        model_type=facts.model_type,
        source=facts.source,
        fingerprint=facts.fingerprint,
        layers=facts.layers,
        other_parameters=facts.other_parameters,
        other_bytes=facts.other_bytes,
        coverage=facts.coverage,
        family=facts.family,
    )
    if facts.tensors_sha256 not in (None, _sha256(tensors)):
        raise NotOfItsType("its matrices were changed, or mixed up, after it was written")
    low, high = _bounds_of(facts.estimator)
    return Evidence(
        inventory=inventory,
        estimator=facts.estimator,
        settings=facts.settings,
        redundancy=_matrices("redundancy", inventory, tensors, low, high),
        floor=_matrices("floor", inventory, tensors, -MOST, MOST),
        signals=_signals(inventory, tensors),
    )


# Scores beyond this measure nothing, and their sums overflow.
MOST = 1e100


def _bounds_of(estimator: str) -> tuple[float, float]:
    """Between which numbers its scores lie."""
    known = next((each for each in PAIR_SIGNALS if each.name == estimator), None)
    return getattr(known, "bounds", (-MOST, MOST))


def _matrices(
    kind: str, inventory: Inventory, tensors: Mapping[str, np.ndarray], low: float, high: float
) -> dict[int, np.ndarray]:
    """The (E, E) matrices of a kind, each symmetric with a diagonal of 0 and entries of that range."""
    matrices = {}
    for i, facts in inventory.layers.items():
        name, size = f"layers.{i}.{kind}", facts.num_experts
        if name not in tensors:
            continue
        matrix = tensors[name]
        if matrix.dtype.kind == "f":  # half a float could not be compared with the bounds
            matrix = matrix.astype(np.float64)
        if matrix.dtype.kind != "f" or matrix.shape != (size, size) or not np.isfinite(matrix).all():
            raise NotOfItsType(f"{name} is not a matrix of {size} x {size} numbers")
        if (matrix != matrix.T).any() or np.diagonal(matrix).any():
            raise NotOfItsType(f"{name} is not symmetric with a diagonal of 0")
        # What is 1 may have been summed up to a little more.
        if matrix.min(initial=0) < low - 1e-9 or matrix.max(initial=0) > high + 1e-9:
            raise NotOfItsType(f"{name} has entries out of range: they are from {low:g} to {high:g}")
        matrices[i] = matrix
    return matrices


def _signals(inventory: Inventory, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """What the tensors of each layer hold beside redundancy and floor: a number for each expert, or each two."""
    signals: dict[str, dict[int, np.ndarray]] = {}
    for layer, facts in inventory.layers.items():
        before, count = f"layers.{layer}.", facts.num_experts
        names = {tensor.removeprefix(before) for tensor in tensors if tensor.startswith(before)}
        for name in sorted(names - {"redundancy", "floor"}):
            values = tensors[before + name]
            if values.dtype.kind == "f":  # half a float could not be compared with MOST
                values = values.astype(np.float64)
            fits = values.shape in {(count,), (count, count)}
            if name in VECTORS:
                fits = values.ndim == 2 and len(values) == count
            if values.dtype.kind != "f" or not fits:
                raise NotOfItsType(
                    f"{_line(before + name)} does not hold a number for each of {count} experts or pairs"
                )
            if not (np.abs(values) <= MOST).all():
                raise NotOfItsType(f"{_line(before + name)} has entries that are not finite numbers up to {MOST:g}")
            signals.setdefault(name, {})[layer] = values
    return signals
