"""Whether vLLM's own classes take a checkpoint's weights, without a GPU: `python scripts/vllm_loads.py OUT ...`.

vLLM has no build for the CPU that can be tried here, so nothing is computed: its engine's config is made, its model
built and its weights loader fed, in float32, and what arrived is compared with the file. Needs moeits, vllm installed
with --no-deps over torch's CPU build, and what importing vllm asks for. Prints a line for each checkpoint.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import vllm.platforms
from safetensors.torch import load_file
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()  # which it does not guess from a build for CUDA

from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_FIRST_HALF, _SECOND_HALF = {"gate_proj", "w1"}, {"up_proj", "w3"}


def engine_config(folder: Path) -> VllmConfig:
    """As `vllm serve` makes it; vLLM loads its plug-ins first."""
    options = {"skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 64, "enforce_eager": True}
    return EngineArgs(model=str(folder), **options).create_engine_config()


def loaded(folder: Path, config: VllmConfig) -> Iterator[str]:
    """Builds and fills a model; what to say of it."""
    torch.set_default_dtype(torch.float32)
    model = initialize_model(config)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.data.fill_(torch.nan)
    tensors = {name: value.float() for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    model.load_weights(iter(tensors.items()))
    yield f"experts {[each.shape[0] for name, each in parameters.items() if name.endswith('.w13_weight')]}"
    yield f"not filled {[name for name, each in parameters.items() if each.isnan().any()]}"
    experts = {name: found for name in tensors if (found := _EXPERT.fullmatch(name))}
    same = [torch.equal(arrived(parameters, *found.groups()), tensors[name]) for name, found in experts.items()]
    yield f"{sum(same)} of {len(same)} tensors of experts as in the file"


def arrived(parameters: dict[str, Any], experts: str, number: str, projection: str) -> torch.Tensor:
    """An expert's weight where vLLM keeps it, gate and up stacked."""
    if projection not in _FIRST_HALF | _SECOND_HALF:
        return parameters[f"{experts}.routed_experts.w2_weight"][int(number)]
    stacked = parameters[f"{experts}.routed_experts.w13_weight"][int(number)]
    return stacked.chunk(2)[int(projection in _SECOND_HALF)]


def main(folders: list[Path]) -> None:
    """A line for each checkpoint."""
    configs = {folder: engine_config(folder) for folder in folders}
    with set_current_vllm_config(configs[folders[0]]), tempfile.TemporaryDirectory() as meeting:
        init_distributed_environment(1, 0, f"file://{meeting}/ranks", 0, "gloo")
        initialize_model_parallel(1, 1)
    for folder, config in configs.items():
        print(f"{folder.name}, {config.model_config.architecture}: {'; '.join(loaded(folder, config))}", flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
