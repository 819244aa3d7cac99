"""`python -m experiments.heal_memory`: memory and time of a training step on wide experts, three ways of LoRA.

Ours beside plain peft `target_parameters` (which cannot have dropout) and per-expert Linear views with ordinary LoRA,
on one Mixtral of random weights whose experts are wide enough for rank 64 to be small beside them. Every way runs in a
process of its own. "Peak above the model" is the most the process held while it trained, less what it held before, with
the model built and adapted: activations, gradients, the states of AdamW, and whatever copies a way makes. float32, one
thread.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAYS = ("moeits", "peft target_parameters", "Linear per expert")
STEPS, TOKENS = 5, 64
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print("| way | dropout on experts | trained | experts MiB | peak above the model MiB | seconds per step |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print("| " + " | ".join(pool.apply(measure, (way,))) + " |", flush=True)


def measure(way: str) -> tuple[str, ...]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build()
    experts = sum(p.nbytes for name, p in model.named_parameters() if "experts" in name)
    model = {"moeits": ours, "peft target_parameters": peft_parameters, "Linear per expert": linear_views}[way](model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(0, 256, (1, TOKENS))
    before = held("VmRSS")
    # The peak so far is that of building the model; from here on it is that of training.
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    above = held("VmHWM") - before
    return (
        way,
        "no" if way.startswith("peft") else "yes",
        f"{sum(p.numel() for p in trained):,}",
        f"{experts / MIB:.0f}",
        f"{above / MIB:.0f}",
        f"{statistics.median(seconds[1:]):.2f}",
    )


def build() -> Any:
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_local_experts=8,
        max_position_embeddings=TOKENS,
    )
    return transformers.MixtralForCausalLM(config)


def ours(model: Any) -> Any:
    from moeits.healing.adapters import AdaptedExperts
    from moeits.healing.recipe import PAPER
    from moeits.healing.targets import Target

    model.requires_grad_(False)
    for at, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        count, rows, columns = experts.gate_up_proj.shape
        up = (count, rows // 2, columns)
        weights = {"gate": up, "up": up, "down": (count, columns, rows // 2)}
        target = Target(
            group="experts", module=f"model.layers.{at}.mlp.experts", weights=weights, tensor=None, layer=at
        )
        stacked = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
        layer.mlp.experts = AdaptedExperts(experts, target, stacked, PAPER)
    return model


def peft_parameters(model: Any) -> Any:
    import peft

    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=64, lora_alpha=16, target_modules=[], target_parameters=names, lora_dropout=0.0)
    )


def linear_views(model: Any) -> Any:
    import peft
    from torch import nn

    class LinearExperts(nn.Module):
        def __init__(self, fused: Any) -> None:
            super().__init__()
            self.gate = fused._apply_gate
            self.up = nn.ModuleList(map(linear, fused.gate_up_proj.data))
            self.down = nn.ModuleList(map(linear, fused.down_proj.data))

        def forward(self, hidden: Any, chosen: Any, weights: Any) -> Any:
            out = hidden.new_zeros(hidden.shape)
            for expert in chosen.unique().tolist():
                token, slot = (chosen == expert).nonzero(as_tuple=True)
                made = self.down[expert](self.gate(self.up[expert](hidden[token]))) * weights[token, slot, None]
                out = out.index_add(0, token, made)
            return out

    def linear(weight: Any) -> Any:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    for layer in model.model.layers:
        layer.mlp.experts = LinearExperts(layer.mlp.experts)
    # A model type that peft does not know: for known ones it would redirect the names to fused parameters.
    model.config.model_type = "mixtral_with_linear_experts"
    return peft.get_peft_model(
        model, peft.LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=r".*experts\.(up|down)\.\d+")
    )


def held(name: str) -> int:
    """Bytes of this process: VmRSS, what it holds now, or VmHWM, the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
