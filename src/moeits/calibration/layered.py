"""The stock model of a checkpoint with the weights of one decoder layer at a time.

The model is built without weights (on torch's meta device). Its own `forward` is asked once, with decoder layers that
only write down their arguments, for what each layer gets beside the hidden states: masks, positions, rotary embeddings.
After that the layers are filled from the checkpoint, run on all tokens and emptied, one by one. So the largest thing in
memory is one layer, and no line of any model's code is repeated here.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from moeits.calibration.filling import Filling
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, CheckpointError
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout
from moeits.experts.promises import needs_loader
from moeits.modeling_moeits import decoder_layers, per_layer_class
from moeits.runtime import need, quiet, refusals_as_sentences
from moeits.surgery.pruned_config import class_name

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a decoder layer is called with after the hidden states."""


class _TakenApart(Exception):
    """A model expects of a layer more than hidden states."""


class _OneThing(torch.Tensor):
    """Hidden states that are not taken for a tuple of as many things as there are windows."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iter__(self) -> Iterator[torch.Tensor]:
        raise _TakenApart


class LayeredModel:
    """A causal language model in float32 whose decoder layers come from disk when they are needed.

    Raises CheckpointError if transformers has no class for it, or the checkpoint lacks a weight.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.layout = MoELayout.of(checkpoint)
        self.device = torch.device(device)
        with refusals_as_sentences(f"The model {checkpoint.source}"):
            with quiet():
                self.model = _without_weights(checkpoint.config)
            config = self.model.config.get_text_config(decoder=True)
            self._owner, self.layers = decoder_layers(self.model, config)
            prefix = next(name for name, module in self.model.named_modules() if module is self.layers) + "."
            self._filling = Filling(checkpoint, self.layout, self.model, prefix, self.device)
            self._filling.fill_outside(self._outside())

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @torch.no_grad()
    def start(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """Hidden states (n, length, H) before the first layer, and every layer's other arguments for such a batch."""
        seen: list[Arguments] = []
        first: list[torch.Tensor] = []

        def write_down(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first.append(hidden)
            seen.append((args, kwargs))
            return hidden.as_subclass(_OneThing)

        what = f"The model {self.checkpoint.source}"
        with refusals_as_sentences(what), self._every_layer(lambda _: write_down):
            try:
                self._base(input_ids=tokens.to(self.device), use_cache=False)
            except _TakenApart:
                raise CheckpointError(
                    f"The layers of {type(self.model).__name__} hand on more than hidden states, so {what[4:]} cannot "
                    "be run layer by layer. Choose by criteria of weights, such as moeits or router-norm."
                ) from None
        if first[0].shape != (*tokens.shape, self.hidden_size):
            raise CheckpointError(
                f"Between the layers of {type(self.model).__name__} there is more than one residual stream, so "
                f"{what[4:]} cannot be run layer by layer. Choose by criteria of weights, such as moeits."
            )
        return first[0], seen

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(n, length, vocabulary) from the hidden states after the last layer."""

        def stand_in(i: int) -> Callable[..., torch.Tensor]:
            return lambda before, *args, **kwargs: hidden if i == 0 else before  # noqa: ARG005

        with self._every_layer(stand_in):
            found = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        assert isinstance(found, torch.Tensor)
        if found.shape[-1] <= int(tokens.max()):
            raise CheckpointError(
                f"{type(self.model).__name__} tells {found.shape[-1]} classes of text and no next token, so nothing is "
                "lost or gained in nats per token."
            )
        return found

    @contextmanager
    def layer(self, i: int) -> Iterator["LiveLayer"]:
        """A decoder layer with its weights, which go again when the block ends."""
        module = self.layers[i]
        block = self._path_of_block(module) if i in self.layout.layers else ""
        try:
            with refusals_as_sentences(f"Layer {i} of {self.checkpoint.source}"):
                self._filling.fill_layer(i, module, block)
            self._try(i, module)
            moe = self.layout.layers.get(i)
            yield LiveLayer(module, None if moe is None else module.get_submodule(block), moe)
        finally:
            module.to("meta")

    @torch.no_grad()
    def _try(self, i: int, module: torch.nn.Module) -> None:
        """The layer runs by itself, on two tokens; what fails later is ours. Raises CheckpointError."""
        hidden, arguments = self._two_tokens
        args, kwargs = arguments[i]
        with refusals_as_sentences(f"A layer of the class {type(module).__name__}, run by itself,"):
            module(hidden, *args, **kwargs)

    @cached_property
    def _two_tokens(self) -> tuple[torch.Tensor, list[Arguments]]:
        return self.start(torch.zeros((1, 2), dtype=torch.long))

    def _path_of_block(self, module: torch.nn.Module) -> str:
        """From a decoder layer to its MoE block; of the names that blocks have, the one in memory comes last."""
        paths = [block.partition("{layer}.")[2] for block in reversed(self.layout.architecture.blocks)]
        known = dict(module.named_modules())
        return next((path for path in paths if path in known), paths[0])

    def _outside(self) -> list[torch.nn.Module]:
        """What has weights beside the decoder layers; of several models in one only what text goes through."""
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        of_text = [self.model]
        if self.layout.architecture.part:
            of_text = [self._owner, self._head()]
        modules = {id(module): module for part in of_text for module in part.modules()}
        return [module for key, module in modules.items() if key not in inside]

    def _head(self) -> torch.nn.Module:
        """What tells the next token: of the whole, or of the part that text goes through.

        Raises CheckpointError if there is none: what is not filled gives numbers that mean nothing.
        """
        for module in self.model.modules():
            if self._owner in module.modules() and hasattr(module, "get_output_embeddings"):
                head = module.get_output_embeddings()
                if isinstance(head, torch.nn.Module):
                    return head
        raise CheckpointError(f"{type(self.model).__name__} does not say which module tells the next token.")

    @property
    def _base(self) -> Any:
        """What text goes through, up to the last norm."""
        return self._owner if self.layout.architecture.part else self.model.get_decoder()

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
        found = getattr(self.block, "experts", None)
        if found is None:
            raise _not_followed(self.block, "has its experts beside other parts of the layer")
        return found

    @property
    def router(self) -> Any:
        """The module that gives (logits, gates, chosen) for a token."""
        assert self.block is not None
        return next(self.block.get_submodule(name) for name in ("gate", "router") if hasattr(self.block, name))

    @contextmanager
    def watched(self) -> Iterator["Watched"]:
        """What goes into the routed experts and comes out of them, at every `run` in the block."""
        watched = Watched()
        if not hasattr(self.experts, "gate_up_proj"):
            raise _not_followed(self.experts, "has no gate beside up")
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
        """A forward hook. Raises CalibrationError for experts not given tokens, choices and gates, or peculiar ones."""
        if len(args) + len(kwargs) != 3:
            raise _not_followed(module, "weights tokens before the experts")
        if not hasattr(module, "is_transposed") or hasattr(module, "post_expert_norm"):
            raise _not_followed(module, "computes its experts in a way of its own")
        hidden, chosen, gates = (*args, *kwargs.values())
        self.hidden, self.chosen, self.gates = hidden.reshape(-1, hidden.shape[-1]), chosen, gates
        self.routed = out.reshape(-1, out.shape[-1])


def _not_followed(module: torch.nn.Module, how: str) -> CalibrationError:
    return CalibrationError(
        f"{type(module).__name__} {how}, which calibrate and refit do not follow yet. Choose by criteria of weights, "
        "such as moeits or router-norm."
    )


def _as_number(found: dict[str, Any]) -> Any:
    """transformers writes numbers that JSON lacks as {"__float__": "Infinity"}."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def _without_weights(config: Mapping[str, Any]) -> Any:
    transformers = need("transformers", extra="load")
    name = class_name(config)
    stock = getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise CheckpointError(f"This transformers has no model class {name}. Update transformers.")
    known = transformers.CONFIG_MAPPING
    if config["model_type"] not in known:
        raise CheckpointError(f"This transformers has no model type {config['model_type']}. Update transformers.")
    read = known[config["model_type"]].from_dict(json.loads(json.dumps(config), object_hook=_as_number))
    for part in (read, *(getattr(read, name, None) for name in read.sub_configs)):
        if part is not None:
            part.dtype = torch.float32
    made: Any = per_layer_class(stock) if needs_loader(config) else stock
    with torch.device("meta"):
        return made._from_config(read, dtype=torch.float32).eval().requires_grad_(False)
