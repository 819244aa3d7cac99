"""Weights of a checkpoint into some modules of a stock model that was built without any.

What a tensor of the files is called in memory, and of what it becomes a part there, transformers itself says: its own
conversion is asked for the tensors of one layer, and for what is outside all layers. Experts that are stored one by one
are stacked here, a projection at a time and by the codecs, so that there are never two copies of a layer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from moeits.experts.finding import by_layer
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.runtime import need, quiet

_OUTSIDE = "the embeddings, the last norm or the head"


class Filling:
    """The weights of one checkpoint, for a stock model on torch's meta device whose decoder layers are at `prefix`."""

    def __init__(
        self, checkpoint: Checkpoint, layout: MoELayout, model: Any, prefix: str, device: torch.device
    ) -> None:
        self.checkpoint, self.layout, self.model, self.prefix, self.device = checkpoint, layout, model, prefix, device
        self._conversions = need("transformers.conversion_mapping", extra="load").get_model_conversion_mapping(model)
        self._by_layer = by_layer(layout.architecture, checkpoint.tensors)
        in_layers = {name for tensors in self._by_layer.values() for name in tensors}
        self._beside = self._held([name for name in checkpoint.tensors if name not in in_layers])

    def fill_outside(self, modules: Iterable[torch.nn.Module]) -> None:
        """Embeddings, the last norm, the head: modules that are in no decoder layer, each without what is below it."""
        modules = list(modules)
        self._compute_buffers(modules)
        own = {id(value) for module in modules for value in (*module._parameters.values(), *module._buffers.values())}
        wanted = {name for name, value in self.model.state_dict(keep_vars=True).items() if id(value) in own}
        sources = [name for name, in_memory in self._beside.items() if in_memory in wanted]
        self._load(sources, _OUTSIDE)
        self.model.tie_weights()
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        state = self.model.state_dict(keep_vars=True)
        _check_filled({name: value for name, value in state.items() if name in wanted - tied}, _OUTSIDE)
        self.model.requires_grad_(False)

    def fill_layer(self, i: int, module: torch.nn.Module, block: str) -> None:
        """A decoder layer; `block` is the path from it to the MoE block, if it has one."""
        moe, what, prefix = self.layout.layers.get(i), f"layer {i}", f"{self.prefix}{i}."
        self._compute_buffers(module.modules())
        of_experts: set[str] = set()
        if moe is not None and moe.experts:
            of_experts = {name for tensors in moe.experts.values() for name in tensors.values()}
            for name, stacked in self.layout.architecture.fused.items():
                self._put(prefix + f"{block}.{name}".lstrip("."), self._stacked(moe, stacked), what)
        own = [name for name in self._by_layer[i] if name not in of_experts]
        # A few files have something of every layer in a list of its own.
        own += [name for name, in_memory in self._beside.items() if in_memory.startswith(prefix)]
        foreign = self._load(own, what)
        if foreign:
            raise CheckpointError(
                f"{foreign[0].removeprefix(prefix)} of {what} is not a tensor of transformers' "
                f"{type(module).__name__}, so this checkpoint cannot be run layer by layer."
            )
        _check_filled(module.state_dict(prefix=prefix, keep_vars=True), what)
        module.requires_grad_(False)

    def _held(self, names: Iterable[str]) -> dict[str, str]:
        """Tensor -> what it is called in memory, or the first of what it becomes there."""
        loading = need("transformers.core_model_loading", extra="load")
        state, base = self.model.state_dict(), self.model.base_model_prefix
        kinds = (loading.WeightRenaming, loading.WeightConverter)
        renamings, converters = ([each for each in self._conversions if isinstance(each, kind)] for kind in kinds)
        renamed = {name: str(loading.rename_source_key(name, renamings, converters, base, state)[0]) for name in names}
        return {name: name if own not in state and name in state else own for name, own in renamed.items()}

    def _load(self, names: Iterable[str], what: str) -> list[str]:
        """Let transformers put tensors where they belong. Gives those that belong nowhere. Raises CheckpointError."""
        loading = need("transformers.core_model_loading", extra="load")
        config = need("transformers.modeling_utils", extra="load").LoadStateDictConfig(
            device_map={"": self.device}, dtype=torch.float32, weight_mapping=self._conversions
        )
        stored = {name: _Stored(self.checkpoint, name) for name in names}
        with quiet():
            found, _ = loading.convert_and_load_state_dict_in_model(self.model, stored, config)
        for name, shape, expected in found.mismatched_keys:
            _refuse_shape(name, shape, expected, what)
        for name, reason in found.conversion_errors.items():
            raise CheckpointError(
                f"{name} of {what} cannot be made of the checkpoint's tensors: {reason.strip()[:200]}."
            )
        return sorted(found.unexpected_keys)

    def _put(self, name: str, value: np.ndarray, what: str) -> None:
        """A parameter of the model, which gets this value."""
        path, _, own = name.rpartition(".")
        module = self.model.get_submodule(path)
        expected = getattr(module, own).shape
        if value.shape != tuple(expected):
            _refuse_shape(name, value.shape, expected, what)
        held = torch.from_numpy(value).to(self.device)
        setattr(module, own, torch.nn.Parameter(held, requires_grad=False))

    def _stacked(self, moe: MoELayer, projections: tuple[str, ...]) -> np.ndarray:
        """Experts that are stored one by one, as transformers holds them: (E, rows of all projections, inputs)."""

        def one(expert: int) -> np.ndarray:
            return np.concatenate([self.layout.read(self.checkpoint, moe.index, expert, name) for name in projections])

        first = one(0)
        stacked = np.empty((moe.num_experts, *first.shape), np.float32)
        for e in range(moe.num_experts):
            stacked[e] = first if e == 0 else one(e)
        return stacked

    def _compute_buffers(self, modules: Iterable[torch.nn.Module]) -> None:
        """What is computed from the config and stored nowhere, such as rotary frequencies.

        What is stored stays without numbers, so that what the checkpoint lacks is noticed.
        """
        for module in modules:
            for name in module._non_persistent_buffers_set:
                buffer = module._buffers.get(name)
                module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device=self.device)
            if module._non_persistent_buffers_set:
                self.model._init_weights(module)


class _Stored:
    """A tensor that is read when it is asked for, as slices of safetensors are."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, _: object) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._checkpoint.read(self._name).astype(np.float32)))


def _check_filled(state: Mapping[str, torch.Tensor], what: str) -> None:
    for name in sorted(state):
        if state[name].is_meta:
            raise CheckpointError(f"The checkpoint has no {name}, which {what} needs. Download it again.")


def _refuse_shape(name: str, shape: Iterable[int], expected: Iterable[int], what: str) -> None:
    raise CheckpointError(
        f"{name} of {what} is {tuple(shape)}, but by config.json it is {tuple(expected)}. The checkpoint and its "
        "config.json are not of one model."
    )
