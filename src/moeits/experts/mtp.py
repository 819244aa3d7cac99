"""Layers for multi-token prediction: a draft head behind the decoder layers, which may have experts of its own.

DeepSeek-V3 and GLM-4.5 number it on as a layer beyond `num_hidden_layers`; Qwen3-Next and ERNIE 4.5 call it `mtp`.
Transformers loads it only to draft (`generate(use_mtp=True)`), as engines do, with the one number of experts that
config.json has. No plan covers it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from moeits.experts.families import Architecture

# How many of them there are, by config.json.
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", "num_mtp_layers")

_CALLED_MTP = re.compile(r"(?:.*?\.)?mtp(?:_\w+)?(?=\.)")
_EXPERTS = re.compile(r"(?:^|\.)experts\.")


@dataclass(frozen=True, kw_only=True)
class MtpLayers:
    """The tensors of a checkpoint's layers for multi-token prediction, if it has any."""

    tensors: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    """What the tensors' names begin with."""
    have_experts: bool = False

    @classmethod
    def of(cls, architecture: Architecture, layers: int, tensors: Iterable[str]) -> "MtpLayers":
        """Find them by name, beyond the decoder layers or beside them."""
        before = "|".join(sorted({re.escape(block.split("{layer}")[0]) for block in architecture.blocks}))
        numbered = re.compile(rf"(?:{before})(\d+)(?=\.)")
        begin: dict[str, str] = {}
        for name in tensors:
            layer = numbered.match(name)
            if layer and int(layer[1]) >= layers:
                begin[name] = layer[0]
            elif not layer and (called := _CALLED_MTP.match(name)):
                begin[name] = called[0]
        return cls(
            tensors=frozenset(begin),
            names=tuple(dict.fromkeys(begin.values())),
            have_experts=any(_EXPERTS.search(name) for name in begin),
        )

    def __str__(self) -> str:
        return f"the layer{'s' if len(self.names) > 1 else ''} for multi-token prediction ({', '.join(self.names)})"
