"""Whether SGLang's own classes take a checkpoint's weights, without a GPU: `python scripts/sglang_loads.py OUT`.

Nothing is computed: its settings and its config are made, its model built and its weights loader fed, in float32 on the
CPU, and what arrived is compared with the file (`scripts/clients sglang` computes). Needs moeits, sglang installed with
--no-deps over torch's CPU build, and what importing sglang asks for. A process has the settings of one model, so each
checkpoint is a process of its own. Prints a line.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "sglang_stand_in"))

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.parallel_state import (
    init_distributed_environment,
    initialize_model_parallel,
)
from sglang.srt.model_loader import loader
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import ServerArgs

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_FIRST_HALF, _SECOND_HALF = {"gate_proj", "w1"}, {"up_proj", "w3"}


def built(folder: Path) -> Any:
    """The model of a checkpoint as `sglang.launch_server` builds it, every parameter NaN."""
    load_plugins()
    settings = ServerArgs(
        model_path=str(folder), device="cpu", dtype="float32", skip_tokenizer_init=True, context_length=64
    )
    publish(settings, role="scheduler", ranks=SpawnRanks(world_rank=0))
    with tempfile.TemporaryDirectory() as meeting:
        init_distributed_environment(1, 0, f"file://{meeting}/ranks", 0, "gloo")
        initialize_model_parallel("gloo")
    config = ModelConfig.from_server_args(settings)
    torch.set_default_dtype(torch.float32)
    model = loader._initialize_model(config, LoadConfig())
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


def loaded(folder: Path) -> Iterator[str]:
    """Builds and fills a model; what to say of it."""
    model = built(folder)
    parameters = dict(model.named_parameters())
    tensors = {name: value.float() for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    model.load_weights(iter(tensors.items()))
    yield f"{type(model).__name__}"
    yield f"experts {[each.shape[0] for name, each in parameters.items() if name.endswith('.w13_weight')]}"
    yield f"not filled {[name for name, each in parameters.items() if each.isnan().any()]}"
    experts = {name: found for name in tensors if (found := _EXPERT.fullmatch(name))}
    same = [torch.equal(arrived(parameters, *found.groups()), tensors[name]) for name, found in experts.items()]
    yield f"{sum(same)} of {len(same)} tensors of experts as in the file"


def arrived(parameters: dict[str, Any], experts: str, number: str, projection: str) -> torch.Tensor:
    """An expert's weight where SGLang keeps it, gate and up stacked."""
    if projection not in _FIRST_HALF | _SECOND_HALF:
        return parameters[f"{experts}.w2_weight"][int(number)]
    return parameters[f"{experts}.w13_weight"][int(number)].chunk(2)[int(projection in _SECOND_HALF)]


if __name__ == "__main__":
    print(f"{Path(sys.argv[1]).name}: {'; '.join(loaded(Path(sys.argv[1])))}", flush=True)
