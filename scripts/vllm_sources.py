"""Whether vLLM's sources still are what moeits.servers.vllm builds on: `python scripts/vllm_sources.py FOLDER`.

FOLDER holds the package `vllm`: site-packages, or an unzipped wheel. Nothing of it is run, so no GPU is needed. Prints
a line for each class, and exits with 1 if one is not as it should be.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from moeits.servers.vllm import DECODER_LAYERS, DecoderLayer

METHODS = {
    "model_executor/models/registry.py": ("_ModelRegistry", ("inspect_model_cls", "resolve_model_cls")),
    "transformers_utils/model_arch_config_convertor.py": (
        "ModelArchConfigConvertorBase",
        ("get_per_layer_hf_configs", "is_deepseek_mla"),
    ),
}
"""file -> class, and its methods that are wrapped or asked."""


def main(folder: Path) -> int:
    """Prints what is found; 1 if something is wrong, else 0."""
    if not (folder / "vllm" / "__init__.py").is_file():
        print(f"{folder} has no package vllm", file=sys.stderr)
        return 2
    found = [*seams(folder / "vllm"), backend(folder / "vllm"), *layers(folder / "vllm")]
    for what, wrong in found:
        print(f"{what}: {wrong or 'as it should be'}")
    return int(any(wrong for _, wrong in found))


def seams(vllm: Path) -> Iterator[tuple[str, str]]:
    """The methods that the plug-in wraps: name, and what is wrong with it."""
    for file, (name, wanted) in METHODS.items():
        methods = {each.name for each in class_in(parsed(vllm / file), name) if isinstance(each, ast.FunctionDef)}
        yield name, ", ".join(f"no {each}" for each in wanted if each not in methods)


def backend(vllm: Path) -> tuple[str, str]:
    """What serves models that transformers builds: name, and what is wrong with it."""
    folder = vllm / "model_executor" / "models" / "transformers"
    files = {file.stem: list(ast.walk(parsed(file))) for file in folder.glob("*.py")}
    functions = {each.name for nodes in files.values() for each in nodes if isinstance(each, ast.FunctionDef)}
    missing = [
        f"no {name}" for name in ("pipeline_parallel", "init_on_device_without_buffers") if name not in functions
    ]
    calls = (each.func for each in files.get("moe", ()) if isinstance(each, ast.Call))
    if "FusedMoEFactory" not in {call.id for call in calls if isinstance(call, ast.Name)}:
        missing.append("no FusedMoEFactory is called")
    return "what serves models of transformers", ", ".join(missing)


def layers(vllm: Path) -> Iterator[tuple[str, str]]:
    """Each decoder layer of the table: name, and what is wrong with it."""
    text = (vllm / "model_executor" / "models" / "registry.py").read_text(encoding="utf-8")
    registry = " ".join(text.split()).replace("( ", "(")
    for architecture, layer in DECODER_LAYERS.items():
        module = with_its_bases(vllm / "model_executor" / "models", layer)
        known = f'"{architecture}": ("{layer.module}", ' in registry
        wrong = "" if known else "the registry does not have it in this module"
        yield f"{architecture} ({layer.module}.{layer.name})", wrong or what_is_wrong(module, layer)


def with_its_bases(models: Path, layer: DecoderLayer) -> ast.Module:
    """The module of a decoder layer, and then those beside it that it imports a decoder layer from."""
    module = parsed(models / f"{layer.module}.py")
    imports = (each for each in ast.walk(module) if isinstance(each, ast.ImportFrom) and each.level == 1)
    bases = [each.module for each in imports if any(name.name.endswith("DecoderLayer") for name in each.names)]
    return ast.Module([*module.body, *(node for base in bases for node in parsed(models / f"{base}.py").body)], [])


def what_is_wrong(module: ast.Module, layer: DecoderLayer) -> str:
    """With a decoder layer in its module; empty if nothing is."""
    takes = parameters(class_in(module, layer.name))
    if "prefix" not in takes or not {"config", "vllm_config"} & set(takes):
        return f"__init__ takes {', '.join(takes) or 'nothing'}"
    reads = {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    if layer.count not in reads:
        return f"no {layer.count} is read"
    makes = [
        call
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "make_layers"
    ]
    return "" if makes else "its layers are not built by make_layers, which gives them their prefix"


def parsed(file: Path) -> ast.Module:
    """A file of Python; none is an empty one."""
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def class_in(module: ast.Module, name: str) -> list[ast.stmt]:
    """What a class of a module consists of; nothing if there is no such class."""
    return next((each.body for each in module.body if isinstance(each, ast.ClassDef) and each.name == name), [])


def parameters(body: list[ast.stmt]) -> list[str]:
    """The names that `__init__` takes, without self."""
    for each in body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return [arg.arg for arg in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs)][1:]
    return []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
