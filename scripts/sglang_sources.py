"""Whether SGLang's sources still are what moeits.servers.sglang builds on: `python scripts/sglang_sources.py FOLDER`.

FOLDER holds the package `sglang`: site-packages, or an unzipped wheel. Nothing of it is run, so no GPU is needed.
Prints a line for each function and class, and exits with 1 if one is not as it should be.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from vllm_sources import class_in, parameters, parsed

from moeits.servers.sglang import DECODER_LAYERS, HOOKS, DecoderLayers

TAKES = {
    "get_hf_text_config": ["config"],
    "get_model_architecture": ["model_config"],
    "resolve_shared_experts_config": ["model_class", "hf_config", "quant_config"],
    "can_fuse_shared_expert": ["config", "quant_config"],
}
"""function -> what the hooks take it to be given."""


def main(folder: Path) -> int:
    """Prints what is found; 1 if something is wrong, else 0."""
    if not (folder / "sglang" / "__init__.py").is_file():
        print(f"{folder} has no package sglang", file=sys.stderr)
        return 2
    found = [*doors(folder), *layers(folder / "sglang" / "srt" / "models")]
    for what, wrong in found:
        print(f"{what}: {wrong or 'as it should be'}")
    return int(any(wrong for _, wrong in found))


def doors(folder: Path) -> Iterator[tuple[str, str]]:
    """The plug-in mechanism, and the functions that are hooked: name, and what is wrong with it."""
    plugins = parsed(folder / "sglang" / "srt" / "plugins" / "__init__.py")
    groups = {node.value for node in ast.walk(plugins) if isinstance(node, ast.Constant)}
    yield "plug-ins", "" if "sglang.srt.plugins" in groups else "no entry point group sglang.srt.plugins"
    registry = class_in(parsed(folder / "sglang" / "srt" / "plugins" / "hook_registry.py"), "HookRegistry")
    methods = {each.name for each in registry if isinstance(each, ast.FunctionDef)}
    yield "HookRegistry", "" if "register" in methods else "no register"
    own_class = class_in(parsed(folder / "sglang" / "srt" / "configs" / "qwen3_next.py"), "Qwen3NextConfig")
    yield "Qwen3NextConfig", "" if "num_hidden_layers" in parameters(own_class) else "takes no num_hidden_layers"
    functions = [target for target in HOOKS if not target.endswith("__init__")]
    for target in (*functions, "sglang.srt.models.qwen2_moe.can_fuse_shared_expert"):
        module, _, name = target.rpartition(".")
        yield target, function_is(parsed(folder / f"{module.replace('.', '/')}.py"), name)


def function_is(module: ast.Module, name: str) -> str:
    """What is wrong with a function of a module; empty if nothing is."""
    found = next((each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == name), None)
    if found is None:
        return "not there"
    takes = [arg.arg for arg in found.args.args]
    return "" if takes == TAKES[name] else f"takes {', '.join(takes)}"


def layers(models: Path) -> Iterator[tuple[str, str]]:
    """Each architecture of the table: name, and what is wrong with its decoder layers."""
    for architecture, known in DECODER_LAYERS.items():
        module = parsed(models / f"{known.module}.py")
        experts = parsed(models / f"{known.fuses or known.module}.py")
        yield f"{architecture} ({known.module})", what_is_wrong(architecture, module, experts, known)


def what_is_wrong(architecture: str, module: ast.Module, experts: ast.Module, known: DecoderLayers) -> str:
    """With the decoder layers of a module; empty if nothing is."""
    entries = [
        each for each in module.body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "EntryClass"
    ]
    if not any(architecture in ast.unparse(each.value) for each in entries):
        return "this module does not have it"
    for name in known.names:
        takes = parameters(class_in(module, name))
        if not {"config", "layer_id"} <= set(takes):
            return f"{name} takes {', '.join(takes) or 'nothing'}"
    reads = {node.attr for node in ast.walk(experts) if isinstance(node, ast.Attribute)}
    return "" if known.count in reads else f"no {known.count} is read"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
