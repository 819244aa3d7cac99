"""Which tensors of a checkpoint are experts, routers and shared experts: names, not modules.

Weight-only pruning needs no model class, so an architecture is a frozen description of tensor names and config keys.
To add one: write `architectures/<model_type>.py` and add its name to `ARCHITECTURES` below (docs/extending.md).
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moeits.errors import UnknownArchitecture

Config = Mapping[str, Any]

# Names under which configs keep the number of routed experts; transformers reads some of them as others of them.
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def every_layer(config: Config, layer: int) -> bool:  # noqa: ARG001
    """The rule of a family whose decoder layers are all MoE layers."""
    return True


def one_group(config: Config) -> int:  # noqa: ARG001
    """The rule of a family whose router chooses among all experts, and of one whose groups may be of one expert."""
    return 1


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where one family of models keeps its experts. All names below `blocks` are relative to the MoE block."""

    model_type: str
    """As in config.json; also the name of the file that describes it."""
    blocks: tuple[str, ...]
    """Names of the MoE block, `{layer}` standing for the number of the decoder layer. Checkpoints written from
    transformers' memory may use another name than those on the hub, hence a tuple; the one in memory comes last."""
    expert: str = "experts.{expert}.{tensor}"
    """A tensor of one routed expert. `{tensor}` is anything: weights, biases and scales move together."""
    projections: Mapping[str, str] = field(default_factory=dict)
    """Projection -> `{tensor}` of its weight, in the order in which their redundancies are averaged. Empty where no
    checkpoint has its experts one by one."""
    fused: Mapping[str, tuple[str, ...]]
    """The same experts as 3-D tensors with the expert axis first: name -> the projections stacked in it."""
    stacking: Literal["rows", "columns", "alternating columns"] = "rows"
    """How. In rows: (E, 2 I, H), one projection below the other. In columns every matrix is stored the other way round,
    (E, H, 2 I), and the projections stand side by side or take turns."""
    router: tuple[str, ...]
    """Tensors with one entry or row per expert, selection biases included; the first one must be there."""
    router_in_memory: str = ""
    """Name of the first one where transformers holds experts fused, if it is another one there."""
    expert_axis: Mapping[str, int] = field(default_factory=dict)
    """The axis of the experts in those tensors of the router where it is not the first."""
    shared: tuple[str, ...] = ()
    """Prefixes of what else is in the MoE block: shared experts and their gates."""
    num_experts_keys: tuple[str, ...]
    """Config keys of the number of routed experts. All that are present must agree, and are rewritten."""
    top_k_key: str = "num_experts_per_tok"
    is_moe_layer: Callable[[Config, int], bool] = every_layer
    groups: Callable[[Config], int] = one_group
    """Number of expert groups that the router's choice is limited by; 1 where it is not."""
    least_per_group: Callable[[Config], int] = one_group
    """Experts that each group, or the layer if it has no groups, must keep for the router to work."""

    @property
    def projection_names(self) -> tuple[str, ...]:
        """The matrices of an expert, in the order in which their redundancies are averaged."""
        return tuple(projection for stacked in self.fused.values() for projection in stacked)

    @property
    def can_be_healed(self) -> bool:
        """Whether transformers holds the experts as healing adapts them: `experts.gate_up_proj` (E, 2 I, H) and
        `experts.down_proj` (E, H, I), without biases, taken from files that have them one by one."""
        usual = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}
        return bool(self.projections) and self.fused == usual and self.stacking == "rows"

    def variant(self, model_type: str, **changes: Any) -> "Architecture":
        """The description of another family that keeps its experts in the same way, but for these fields."""
        return replace(self, model_type=model_type, **changes)

    def num_experts_key(self, config: Config) -> str | None:
        """The key under which this config keeps the number of experts, if any."""
        return next((key for key in self.num_experts_keys if key in config), None)

    def count_keys(self, config: Config) -> list[str]:
        """All keys of this config that hold the number of experts: the family's own, and other names of it."""
        own = self.num_experts_key(config)
        aliases = [key for key in COUNT_KEYS if own and type(config.get(key)) is int and config[key] == config[own]]
        return list(dict.fromkeys([*(key for key in self.num_experts_keys if key in config), *aliases]))


from moeits.experts.architectures import (  # noqa: E402
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5_moe,
    glm4_moe,
    gpt_oss,
    granitemoe,
    jamba,
    lfm2_moe,
    llama4_text,
    minimax,
    minimax_m2,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
    qwen3_next,
)

ARCHITECTURES: tuple[Architecture, ...] = (
    deepseek_v2.ARCHITECTURE,
    deepseek_v3.ARCHITECTURE,
    dots1.ARCHITECTURE,
    ernie4_5_moe.ARCHITECTURE,
    glm4_moe.ARCHITECTURE,
    gpt_oss.ARCHITECTURE,
    granitemoe.ARCHITECTURE,
    jamba.ARCHITECTURE,
    lfm2_moe.ARCHITECTURE,
    llama4_text.ARCHITECTURE,
    minimax.ARCHITECTURE,
    minimax_m2.ARCHITECTURE,
    mixtral.ARCHITECTURE,
    olmoe.ARCHITECTURE,
    phimoe.ARCHITECTURE,
    qwen2_moe.ARCHITECTURE,
    qwen3_moe.ARCHITECTURE,
    qwen3_next.ARCHITECTURE,
)


def architecture_of(config: Config) -> Architecture:
    """The description of a config's model_type. Raises UnknownArchitecture, with the nearest known name."""
    model_type = config["model_type"]
    known = {architecture.model_type: architecture for architecture in ARCHITECTURES}
    if model_type in known:
        return known[model_type]
    if part := next((key for key, value in config.items() if isinstance(value, Mapping) and _has_experts(value)), None):
        raise UnknownArchitecture(
            f"A {model_type} checkpoint is several models in one, and has its Mixture of Experts in its {part} "
            f"({config[part].get('model_type', 'of no model_type')}). moeits works on text models that stand by "
            "themselves; docs/extending.md says what it knows of names."
        )
    if not _has_experts(config):
        raise UnknownArchitecture(
            f"A {model_type} checkpoint is not a Mixture of Experts: its config.json names no experts. "
            f"moeits works on {', '.join(known)}."
        )
    near = difflib.get_close_matches(model_type, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownArchitecture(
        f"No architecture {model_type!r}.{hint} Known: {', '.join(known)}. docs/extending.md shows how to add one."
    )


def _has_experts(config: Config) -> bool:
    return any("expert" in key for key in config)
