"""Computes the gate of Qwen2-MoE's shared expert in plain torch, where SGLang asks Triton.

It does so on a CPU without SGLang's kernels too, for which Triton has no driver, so that SGLang stops.
"""

import torch


def register() -> None:
    """What SGLang calls when a process of it starts (its entry point group `sglang.srt.plugins`)."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.models.qwen2_moe.fused_gate_sigmoid_mul_add", gated, HookType.REPLACE)


def gated(hidden: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor, routed: torch.Tensor) -> None:
    """Adds to what the routed experts give, (tokens, width), that of the shared one by a gate of each token."""
    routed += torch.sigmoid(hidden @ weight).unsqueeze(-1) * shared
