"""The oracle of surgery: the *unpruned* stock model whose removed experts' router logits are -inf before top-k.

It shares no code with the pruner: it finds the routers of a loaded transformers model by the shape of their weight, and
masks what they give wherever torch multiplies by that weight.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

# Matrices of kilobytes are slower on several threads, and far slower when the cores are busy.
torch.set_num_threads(1)

# Both models compute in float32 (24 bits) and take the same products, but sum them in another order, since matrices
# of other sizes are multiplied. Logits here are below 50, so that a few rounding errors stay below this.
TOLERANCE = 1e-5


# Rows of routers behind those of the experts: for shared experts, or for one that computes nothing.
EXTRA_ROWS = {"inkling_text": 1, "inkling_mm_model": 1, "zaya": 1}


@contextmanager
def routers_masked(model: Any, kept: Mapping[int, Sequence[int]], experts: int, extra: int = 0) -> Iterator[None]:
    """Within the block, `model` cannot choose experts that are not in `kept` (decoder layer -> expert ids).

    Where a router adds a bias to choose by, a removed expert's is -inf too. `extra` of its rows are not of experts.
    """
    gone: dict[int, torch.Tensor] = {}
    with ExitStack() as restored:
        for layer, chosen in kept.items():
            removed = torch.tensor(sorted(set(range(experts)) - set(chosen)), dtype=torch.long)
            at = model.model.layers[layer]
            named = [*at.named_parameters(), *at.named_buffers()]
            own = [tensor for name, tensor in named if _may_be_of_a_router(name)]
            routers = [tensor for tensor in own if tensor.ndim == 2 and tensor.shape[0] == experts + extra]
            added = [tensor for name, tensor in named if _may_be_of_a_router(name) and "scale" not in name]
            assert len(routers) == 1, "the layer should have exactly one router"
            gone[id(routers[0])] = removed
            for bias in (tensor for tensor in added if tensor.numel() in {experts, experts + extra}):
                restored.callback(bias.data.copy_, bias.data.clone())
                bias.data[..., removed] = float("-inf")
        linear, masked = torch.nn.functional.linear, set()

        def linear_with_removed_experts(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            result = linear(x, weight, *rest)
            if id(weight) in gone:
                masked.add(id(weight))
                result = result.index_fill(-1, gone[id(weight)], float("-inf"))
            return result

        with mock.patch.object(torch.nn.functional, "linear", linear_with_removed_experts):
            yield
    assert masked == set(gone), "some router never went through the mask: this oracle would prove nothing"


def _may_be_of_a_router(name: str) -> bool:
    """Attention, experts and norms have matrices and vectors of any size."""
    return "norm" not in name and ("proj" not in name or bool(re.search(r"(^|\.)(router|gate)\.", name)))


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(batch, length, vocabulary), float32."""
    return model.eval()(tokens).logits.float()


@torch.no_grad()
def continuation(model: Any, tokens: torch.Tensor, length: int = 6) -> torch.Tensor:
    """What the model writes next, greedily, with its cache; nothing if it does not write."""
    if not model.can_generate():
        return tokens
    return model.eval().generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length, min_new_tokens=length, do_sample=False
    )


@torch.no_grad()
def continuation_without_cache(model: Any, tokens: torch.Tensor, length: int = 6) -> torch.Tensor:
    """The same, every token from all before it, computed anew."""
    if not model.can_generate():
        return tokens
    ends = [end for end in (model.generation_config.eos_token_id,) if end is not None]
    for _ in range(length):
        scores = model.eval()(input_ids=tokens, use_cache=False).logits[:, -1:]
        scores[..., ends] = -torch.inf  # as generate does until it has written enough
        tokens = torch.cat([tokens, scores.argmax(-1)], 1)
    return tokens


def routers_of(model: Any, counts: Mapping[int, int], extra: int = 0) -> dict[str, torch.nn.Parameter]:
    """The weights of the routers of layers with so many experts, by name."""
    return {
        f"{layer}.{name}": weight
        for layer, count in counts.items()
        for name, weight in model.model.layers[layer].named_parameters()
        if re.search(r"(^|\.)(gate|router|wg)\.", name) and weight.ndim == 2 and weight.shape[0] == count + extra
    }
