"""The adapter in peft's own form, so that peft loads it onto the pruned checkpoint in the stock class.

peft adapts a 3-D parameter as a whole (`target_parameters`). Where two projections are stacked in one parameter their
adapters become one of twice the rank, block by block, which is the same map.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moeits.healing.job import HealingJob
from moeits.healing.merging import FactorsByName
from moeits.healing.targets import Target
from moeits.runtime import load_opened, need

ADAPTER_FOLDER = "adapter"


def save_adapter(folder: Path, job: HealingJob, factors: FactorsByName) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the pruned model is loaded once more for peft."""
    peft = need("peft", extra="heal")
    torch = need("torch", extra="heal")
    stacked = {name.rpartition(".")[2]: projections for name, projections in job.moe.architecture.fused.items()}
    wanted = {name: pair for target in job.targets for name, pair in _parameters(target, stacked, factors)}
    # One rank for all, filled up with zeros: peft 0.21 warns that a rank_pattern for parameters is ignored (it is not).
    rank = max(a.shape[1] for a, _ in wanted.values())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=job.recipe.scale * rank,
        target_modules=[],
        target_parameters=list(wanted),
    )
    model = peft.get_peft_model(load_opened(job.checkpoint, dtype=torch.float32), config)
    for name, wrapper in _wrappers(model):
        a, b = _widened(rank, *wanted.pop(name))
        with torch.no_grad():
            wrapper.lora_A["default"].weight.copy_(torch.from_numpy(a.reshape(-1, a.shape[2])))
            # peft counts the experts fastest along the rank axis of B.
            rows = np.ascontiguousarray(b.transpose(1, 2, 0)).reshape(b.shape[1], -1)
            wrapper.lora_B["default"].weight.copy_(torch.from_numpy(rows))
    assert not wanted, f"peft adapted nothing under {list(wanted)}"
    # Where the pruned checkpoint lies is this machine's business.
    model.peft_config["default"].base_model_name_or_path = job.checkpoint.source
    # False: embeddings are not trained; left to find that out, peft would ask the hub about the base model.
    model.save_pretrained(folder, save_embedding_layers=False)


def _parameters(
    target: Target, stacked: Mapping[str, tuple[str, ...]], factors: FactorsByName
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Name of each parameter of a target, and its factors a (stack, rank, columns) and b (stack, rows, rank)."""
    parts = stacked if target.group == "experts" else {"weight": ("weight",)}
    for parameter, weights in parts.items():
        a, b = ([factors[f"{target.module}.factors.{weight}.{side}"] for weight in weights] for side in "ab")
        yield f"{target.module}.{parameter}", (np.concatenate(a, axis=1), _block_diagonal(b))


def _widened(rank: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same map by factors of a higher rank."""
    more = rank - a.shape[1]
    return np.pad(a, ((0, 0), (0, more), (0, 0))), np.pad(b, ((0, 0), (0, 0), (0, more)))


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """(stack, rows, rank) blocks -> (stack, all rows, all ranks), zero between the blocks."""
    rows, ranks = sum(block.shape[1] for block in blocks), sum(block.shape[2] for block in blocks)
    whole = np.zeros((len(blocks[0]), rows, ranks), np.float32)
    row = rank = 0
    for block in blocks:
        whole[:, row : row + block.shape[1], rank : rank + block.shape[2]] = block
        row, rank = row + block.shape[1], rank + block.shape[2]
    return whole


def _wrappers(model: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter that peft adapted, by its name in the stock model."""
    for name, module in model.named_modules():
        if hasattr(module, "parameter_name"):
            inside = name.removeprefix("base_model.model.").replace(".base_layer", "")
            yield f"{inside}.{module.parameter_name}", module
