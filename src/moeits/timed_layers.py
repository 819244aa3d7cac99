"""How long a model takes for some tokens, from a few of its layers with random weights, timed for a moment.

No weight is read: the stock class is built from config.json with as many layers as show both kinds, dense and with
experts. What a layer takes does not depend on its numbers, but for how evenly the router spreads the tokens.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.devices import checked_device
from moeits.experts.layout import MoELayout
from moeits.foreseen import Line, line_through, timed, trying
from moeits.runtime import need, quiet, text_config

# A model of a few layers larger than this takes longer than a moment to make.
MOST_BYTES = 4 << 30
_TRIED_TOKENS = (32, 256)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Seconds of one pass of a batch through the whole model."""

    forward: Line
    backward: float
    """What a pass that learns takes, as a multiple of one that does not."""

    def seconds(self, tokens: float, passes: float = 1.0) -> float:
        """Of so many tokens in so many passes."""
        return passes * self.forward.fixed + tokens * self.forward.each


NOT_TIMED = (
    "No seconds of the model's own work are given: its layers are too large to be timed in a moment, or it runs on "
    "another device than this machine's CPU."
)


def weights_in(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of all weights in a dtype."""
    size = {"float32": 4}.get(_dtype(checkpoint, dtype), 2)
    return size * sum(info.parameters for info in checkpoint.tensors.values())


def passes_of(checkpoint: Checkpoint, *, dtype: str, device: str | None = None, learns: bool = False) -> Passes | None:
    """None where a moment on this CPU does not tell (`NOT_TIMED`), or where the class cannot be built small."""
    if device == "split" or checked_device(device) != "cpu":
        return None
    torch = need("torch", extra="load")
    layout = MoELayout.of(checkpoint, padded=True)
    layers = int(text_config(checkpoint)["num_hidden_layers"])
    first = min(layout.layers)
    shown = min(layers, first + 1)
    per_layer = checkpoint.nbytes / max(1, layers)
    if shown * per_layer * 2 > MOST_BYTES:
        return None
    try:
        with quiet():
            with torch.device("meta"):  # imports what the model itself will import
                _small(checkpoint.config, shown, _dtype(checkpoint, dtype))
            with trying():
                model = _small(checkpoint.config, shown, _dtype(checkpoint, dtype))
                return _timed_passes(model, first, layers, shown, learns=learns)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None  # whether the model itself can be run is for the run to say


def _timed_passes(model: Any, first: int, layers: int, shown: int, *, learns: bool) -> Passes:
    """Those of a model with `layers` layers, of which `shown` are there; `first` has experts."""
    torch = need("torch", extra="load")
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    seconds: dict[int, float] = {}

    def ids(count: int) -> Any:
        return torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(0))

    def forward(count: int) -> None:
        with torch.inference_mode(), _timing(model, first, seconds):
            model(input_ids=ids(count), use_cache=False)

    def learn(count: int) -> None:
        embedded = model.get_input_embeddings()(ids(count)).detach().requires_grad_()
        model(inputs_embeds=embedded, use_cache=False).logits.float().mean().backward()

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    least, more = _TRIED_TOKENS
    whole = line_through(forward, (least, more))
    seconds.clear()
    forward(least)
    small = seconds[first]
    forward(more)
    each = max(0.0, (seconds[first] - small) / (more - least))
    of_layer = Line(fixed=max(0.0, small - each * least), each=each)
    unseen = layers - shown
    line = Line(fixed=whole.fixed + unseen * of_layer.fixed, each=whole.each + unseen * of_layer.each)
    backward = 1.0
    if learns:
        learn(more)
        backward = max(1.0, timed(lambda: learn(more)) / whole.at(more))
    return Passes(forward=line, backward=backward)


def _dtype(checkpoint: Checkpoint, asked: str) -> str:
    stored = text_config(checkpoint).get("dtype") or text_config(checkpoint).get("torch_dtype") or "float32"
    return str(stored).removeprefix("torch.") if asked == "auto" else asked


def _small(config: Mapping[str, Any], layers: int, dtype: str) -> Any:
    """The stock class with few layers."""
    torch, transformers = need("torch", extra="load"), need("transformers", extra="load")
    known = {name: value for name, value in config.items() if name not in ("moeits", "per_layer_config", "auto_map")}
    known["num_hidden_layers"] = layers
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(known.get(name), list):
            known[name] = known[name][:layers]
    described = transformers.AutoConfig.for_model(**known)
    return transformers.AutoModelForCausalLM.from_config(described, dtype=getattr(torch, dtype)).eval()


@contextmanager
def _timing(model: Any, layer: int, seconds: dict[int, float]) -> Iterator[None]:
    """Keeps the seconds of the last pass through one decoder layer."""
    module, begun = model.get_decoder().layers[layer], [0.0]

    def begin(*_: Any) -> None:
        begun[0] = time.process_time()

    def end(*_: Any) -> None:
        seconds[layer] = time.process_time() - begun[0]

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
