"""The stock model of a checkpoint with the weights of one decoder layer at a time.

The model is built without weights (on torch's meta device). Its own `forward` is asked once, with decoder layers that
only write down their arguments, for what each layer gets beside the hidden states: masks, positions, rotary embeddings.
After that the layers are filled from the checkpoint, run on all tokens and emptied, one by one. So the largest thing in
memory is one layer, and no line of any model's code is repeated here.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, CheckpointError
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.experts.promises import per_layer_config
from moeits.modeling_moeits import per_layer_class
from moeits.runtime import need, quiet, refusals_as_sentences
from moeits.surgery.pruned_config import class_name

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a decoder layer is called with after the hidden states."""


class LayeredModel:
    """A causal language model in float32 whose decoder layers come from disk when they are needed.

    Raises CheckpointError if transformers has no class for it, or the checkpoint lacks a weight.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.layout = MoELayout.of(checkpoint)
        if self.layout.architecture.part:
            raise CheckpointError(
                f"A {self.layout.architecture.model_type} checkpoint is several models in one, which moeits cannot run "
                "layer by layer yet."
            )
        self.device = torch.device(device)
        with refusals_as_sentences(f"The model {checkpoint.source}"):
            with quiet():
                self.model = _without_weights(checkpoint.config)
            self.layers = _decoder_layers(self.model)
            self._renamings = _renamings(self.layout.architecture.model_type)
            self._prefix = self.layout.architecture.blocks[-1].split("{layer}")[0]
            self._fill_the_rest()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @torch.no_grad()
    def start(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """Hidden states (n, length, H) before the first layer, and every layer's other arguments for such a batch."""
        seen: list[Arguments] = []
        first: list[torch.Tensor] = []

        def write_down(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first.append(hidden)
            seen.append((args, kwargs))
            return hidden

        what = f"The model {self.checkpoint.source}"
        with refusals_as_sentences(what), self._every_layer(lambda _: write_down):
            self._base(input_ids=tokens.to(self.device), use_cache=False)
        return first[0], seen

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(n, length, vocabulary) from the hidden states after the last layer."""

        def stand_in(i: int) -> Callable[..., torch.Tensor]:
            return lambda before, *args, **kwargs: hidden if i == 0 else before  # noqa: ARG005

        with self._every_layer(stand_in):
            found = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        assert isinstance(found, torch.Tensor)
        return found

    @contextmanager
    def layer(self, i: int) -> Iterator["LiveLayer"]:
        """A decoder layer with its weights, which go again when the block ends."""
        module = self.layers[i]
        module.to_empty(device=self.device)
        _fill_buffers(self.model, module)
        self._fill(module, self._sources(i), f"layer {i}")
        try:
            yield LiveLayer(module, self._moe_block(i, module), self.layout.layers.get(i))
        finally:
            module.to("meta")

    def _moe_block(self, i: int, module: torch.nn.Module) -> torch.nn.Module | None:
        if i not in self.layout.layers:
            return None
        inside = self.layout.architecture.blocks[-1].format(layer=i).removeprefix(f"{self._prefix}{i}.")
        return module.get_submodule(inside)

    @property
    def _base(self) -> Any:
        return self.model.get_decoder()

    @contextmanager
    def _every_layer(self, forward: Callable[[int], Callable[..., torch.Tensor]]) -> Iterator[None]:
        """Another `forward` in the place of each layer's own."""
        for i, layer in enumerate(self.layers):
            layer.forward = forward(i)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    # ------------------------------------------------------------------------------------- weights from the checkpoint

    def _fill_the_rest(self) -> None:
        """Embeddings, the last norm, the head: what is not of a decoder layer."""
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        rest = [module for module in self.model.modules() if id(module) not in inside]
        for module in rest:
            module.to_empty(device=self.device, recurse=False)
        self.model.tie_weights()
        for module in rest:
            _fill_buffers(self.model, module, recurse=False)
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        wanted = {
            name: value
            for name, value in self.model.state_dict(keep_vars=True).items()
            if not name.startswith(self._prefix) and not (name in tied and name not in self.checkpoint.tensors)
        }
        sources = {name: partial(self.checkpoint.read, name) for name in wanted if name in self.checkpoint.tensors}
        _copy(wanted, sources, "the embeddings, the last norm or the head")

    def _fill(self, module: torch.nn.Module, sources: Mapping[str, Callable[[], np.ndarray]], what: str) -> None:
        wanted = module.state_dict(keep_vars=True)
        sources = {self._as_held(name, wanted): read for name, read in sources.items()}
        if foreign := next((name for name in sources if name not in wanted), None):
            raise CheckpointError(
                f"{foreign} of {what} is not a tensor of transformers' {type(module).__name__}, so this checkpoint "
                "cannot be run layer by layer."
            )
        _copy(wanted, sources, what)

    def _as_held(self, name: str, wanted: Collection[str]) -> str:
        """The name that transformers itself gives a tensor of the file, where it is another one."""
        for rule in self._renamings if name not in wanted else ():
            for stored, held in zip(rule.source_patterns, rule.target_patterns, strict=False):
                if (renamed := re.sub(stored, held, name)) in wanted:
                    return renamed
        return name

    def _sources(self, i: int) -> dict[str, Callable[[], np.ndarray]]:
        """Name of a tensor within the layer in memory -> how to read it."""
        prefix, moe = f"{self._prefix}{i}.", self.layout.layers.get(i)
        plain = [name for name in self.checkpoint.tensors if name.startswith(prefix)]
        if moe is None:
            return {name.removeprefix(prefix): partial(self.checkpoint.read, name) for name in plain}
        block = self.layout.architecture.blocks[-1].format(layer=i).removeprefix(prefix) + "."
        of_experts = {name for tensors in moe.experts.values() for name in tensors.values()}
        sources: dict[str, Callable[[], np.ndarray]] = {}
        for name in plain:
            if name in of_experts:
                continue
            inner = name.removeprefix(prefix)
            if name.startswith(moe.block):
                inner = block + self._in_memory(name.removeprefix(moe.block))
            sources[inner] = partial(self.checkpoint.read, name)
        if moe.experts:
            for fused, stacked in self.layout.architecture.fused.items():
                sources[block + fused] = partial(self._stacked, moe, stacked)
        return sources

    def _in_memory(self, name: str) -> str:
        architecture = self.layout.architecture
        return (
            architecture.router_in_memory if architecture.router_in_memory and name == architecture.router[0] else name
        )

    def _stacked(self, moe: MoELayer, projections: tuple[str, ...]) -> np.ndarray:
        """Experts that are stored one by one, as transformers holds them: (E, rows of all projections, inputs)."""
        return np.stack(
            [
                np.concatenate([self.layout.read(self.checkpoint, moe.index, e, name) for name in projections])
                for e in range(moe.num_experts)
            ]
        )


class LiveLayer:
    """A decoder layer that has its weights."""

    def __init__(self, module: torch.nn.Module, block: torch.nn.Module | None, moe: MoELayer | None) -> None:
        self.module = module
        self.block = block
        """The MoE block within it; None for a dense layer."""
        self.moe = moe

    @torch.no_grad()
    def run(self, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """(n, length, H) -> the same shape."""
        args, kwargs = arguments
        out = self.module(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @property
    def experts(self) -> Any:
        """The module of all routed experts."""
        assert self.block is not None
        return self.block.get_submodule("experts")

    @property
    def router(self) -> Any:
        """The module that gives (logits, gates, chosen) for a token."""
        assert self.block is not None
        return next(self.block.get_submodule(name) for name in ("gate", "router") if hasattr(self.block, name))

    @contextmanager
    def watched(self) -> Iterator["Watched"]:
        """What goes into the routed experts and comes out of them, at every `run` in the block."""
        watched = Watched()
        handles = [
            self.experts.register_forward_hook(watched.see, with_kwargs=True),
            self.router.register_forward_hook(watched.see_router, with_kwargs=True),
        ]
        try:
            yield watched
        finally:
            for handle in handles:
                handle.remove()


class Watched:
    """The last call of a layer's routed experts."""

    hidden: torch.Tensor
    """(T, H): what goes into the experts."""
    chosen: torch.Tensor
    """(T, k): numbers of the chosen experts."""
    gates: torch.Tensor
    """(T, k): their weights, as the model uses them."""
    routed: torch.Tensor
    """(T, H): the weighted sum of their outputs."""

    beside: tuple[Any, ...] = ()
    """What the router is given beside the hidden states, such as a bias that the block holds."""

    def see_router(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:  # noqa: ARG002
        """A forward hook."""
        self.beside = (*args, *kwargs.values())[1:]

    def see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> None:
        """A forward hook. Raises CalibrationError for experts that are not given tokens, choices and gates."""
        if len(args) + len(kwargs) != 3:
            raise CalibrationError(
                f"{type(module).__name__} weights tokens before the experts, which calibrate and refit do not follow "
                "yet. Choose by criteria of weights, such as moeits or router-norm."
            )
        hidden, chosen, gates = (*args, *kwargs.values())
        self.hidden, self.chosen, self.gates = hidden.reshape(-1, hidden.shape[-1]), chosen, gates
        self.routed = out.reshape(-1, out.shape[-1])


def _without_weights(config: Mapping[str, Any]) -> Any:
    transformers = need("transformers", extra="load")
    name = class_name(config)
    stock = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise CheckpointError(f"This transformers has no model class {name}. Update transformers.")
    known = transformers.CONFIG_MAPPING
    if config["model_type"] not in known:
        raise CheckpointError(f"This transformers has no model type {config['model_type']}. Update transformers.")
    read = known[config["model_type"]].from_dict(deepcopy(dict(config)))
    read.dtype = torch.float32
    made: Any = per_layer_class(stock) if per_layer_config(config) else stock
    with torch.device("meta"):
        return made._from_config(read, dtype=torch.float32).eval().requires_grad_(False)


def _renamings(model_type: str) -> list[Any]:
    """By what rules transformers renames the tensors of a file, one for one."""
    mapping = need("transformers.conversion_mapping", extra="load")
    rules = mapping.get_checkpoint_conversion_mapping(model_type) or []
    return [rule for rule in rules if type(rule).__name__ == "WeightRenaming"]


def _decoder_layers(model: Any) -> torch.nn.ModuleList:
    count = model.config.num_hidden_layers
    found = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    layers = next(found, None)
    if layers is None:
        raise CheckpointError(f"{type(model).__name__} has no list of {count} decoder layers.")
    return layers


def _fill_buffers(model: Any, module: torch.nn.Module, *, recurse: bool = True) -> None:
    """What is computed from the config and stored nowhere, such as rotary frequencies."""
    for part in module.modules() if recurse else (module,):
        if part._non_persistent_buffers_set:
            model._init_weights(part)


def _copy(wanted: Mapping[str, Any], sources: Mapping[str, Callable[[], np.ndarray]], what: str) -> None:
    for name, value in wanted.items():
        if name not in sources:
            raise CheckpointError(f"The checkpoint has no {name}, which {what} needs. Download it again.")
        stored = sources[name]()
        if stored.shape != tuple(value.shape):
            raise CheckpointError(
                f"{name} of {what} is {stored.shape}, but by config.json it is {tuple(value.shape)}. The checkpoint "
                "and its config.json are not of one model."
            )
        with torch.no_grad():
            value.copy_(torch.from_numpy(np.ascontiguousarray(stored.astype(np.float32))))
