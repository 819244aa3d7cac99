"""Who may import whom (docs/architecture.md), read off the source.

A new module gets its name in one line of `ROOMS`. What a room may import from stands in `DOORS`; a line may import
every stage, a stage no other stage.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moeits"

# room -> its modules. A package stands for all that is in it, and may use itself freely; a module of it can be named
# apart, as the noun that a stage leaves.
ROOMS = {
    "words": "card_slot checkpoint choosing criteria_file devices edits engines errors evaluation.results evidence "
    "experts extras files foreseen locks notebook printable progress run_files scoring settings signals sizes "
    "typed_json version weighing",
    "files": "checkpoint.replaceable checkpoint.side_files checkpoint.staging checkpoint.writing finished left_over "
    "surgery",
    "stages": "stages stages.export stages.gather stages.inspect stages.plan stages.prune stages.push stages.score",
    "runtime": "modeling_moeits runtime timed_layers",
    "servers": "servers",
    "healing": "healing stages.heal",
    "evaluation": "evaluation stages.evaluate",
    "measuring": "measurement stages.measure",
    "refitting": "calibration refitting stages.calibrate stages.refit",
    "comparing": "stages.compare",
    "lines": "stages.compare_criteria stages.forecast stages.simplify stages.sweep sweeping trials",
    "report": "report_page stages.report",
    "recipes": "recipes stages.run",
    "outside": "__init__ __main__ command_line console demo",
}

# room -> the rooms that its modules may import from.
DOORS = {
    "words": "words",
    "files": "words files",
    "stages": "words files",
    "runtime": "words files runtime",
    "servers": "words runtime servers",
    "healing": "words files runtime healing measuring",
    "evaluation": "words files runtime evaluation",
    "measuring": "words files runtime measuring",
    "refitting": "words files runtime evaluation refitting",
    "comparing": "words comparing",
    "lines": "words files stages runtime healing evaluation measuring refitting comparing lines",
    # `compare` reads JSON and nothing else, as the report does.
    "report": "words runtime comparing report",
    "recipes": "words files stages runtime healing evaluation refitting lines report recipes",
    "outside": "words files stages runtime healing evaluation measuring refitting comparing lines report recipes "
    "outside",
}

# What `pip install moeits` brings; everything else is imported inside functions, where it is needed.
# llvmlite comes with numba, whose intrinsics are written in it.
CORE = {
    "huggingface_hub",
    "llvmlite",
    "ml_dtypes",
    "msgspec",
    "numba",
    "numpy",
    "regex",
    "rich",
    "safetensors",
    "typer",
}
# Modules that cannot do without torch. They are imported inside functions only.
NEED_TORCH = {
    "modeling_moeits",
    "healing.adapters",
    "healing.objective",
    "healing.training",
    "calibration.activations",
    "calibration.filling",
    "calibration.layered",
    "calibration.reception",
    "calibration.rehearsal",
    "calibration.routing",
    "calibration.specialists",
    "calibration.stream",
    "refitting.by_features",
    "refitting.by_tokens",
    "refitting.features",
    "refitting.layer",
    "refitting.rehearsal",
    "refitting.ridge",
    "refitting.shared",
    "refitting.solvers",
    "refitting.streams",
    "refitting.symmetric",
}
# A program of its own, which nothing imports.
APART = {"healing.rendering"}
# Flags and terminals belong to the outside; the library neither parses nor prints.
TERMINAL = {"rich", "typer"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
ROOM_OF = {name: room for room, names in ROOMS.items() for name in names.split()}


def room_of(module: str) -> str:
    return ROOM_OF.get(module) or ROOM_OF[module.split(".")[0]]


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names that import statements name; for `from package import name` with the name, it may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """Modules of this package that are imported anywhere in a module, inside functions too."""
    found = set()
    for name in imported(ast.walk(tree)):
        if name == "moeits" or name.startswith("moeits."):
            inside = name.removeprefix("moeits").removeprefix(".") or "__init__"
            found.add(inside if inside in MODULES else inside.rpartition(".")[0] or "__init__")
    return found


def at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run on import: not those in functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def test_every_module_has_a_room() -> None:
    homeless = {module.split(".")[0] for module in MODULES} - set(ROOM_OF)
    assert not homeless, f"give {homeless} a room in ROOMS, and a line in docs/architecture.md"
    gone = set(ROOM_OF) - set(MODULES)
    assert not gone, f"{gone} have a room in ROOMS, but there are no such modules"


def test_a_module_imports_only_from_rooms_whose_door_is_open() -> None:
    for module, tree in MODULES.items():
        for other in own_imports(tree):
            same_package = other.split(".")[0] == module.split(".")[0] and not {module, other} & set(ROOM_OF)
            assert same_package or room_of(other) in DOORS[room_of(module)].split(), f"{module} imports {other}"


def test_a_stage_imports_no_other_stage() -> None:
    for stage in ROOMS["stages"].split():
        assert not own_imports(MODULES[stage]) & (set(ROOMS["stages"].split()) - {stage}), stage


def test_extras_are_imported_only_where_they_are_needed() -> None:
    for module, tree in MODULES.items():
        outer = {name.split(".")[0] for name in imported(at_module_level(tree))}
        foreign = outer - set(sys.stdlib_module_names) - CORE - {"moeits"}
        assert not foreign or module in NEED_TORCH | APART, f"{module} imports {foreign} at its top"


def test_what_needs_torch_is_imported_inside_functions_only() -> None:
    for module in set(MODULES) - NEED_TORCH:
        outer = {name.removeprefix("moeits.") for name in imported(at_module_level(MODULES[module]))}
        assert not {name for name in outer for heavy in NEED_TORCH if f"{name}.".startswith(f"{heavy}.")}, module


def test_the_library_knows_no_terminal_and_never_prints() -> None:
    for module, tree in MODULES.items():
        if room_of(module) == "outside":
            continue
        assert not {name.split(".")[0] for name in imported(ast.walk(tree))} & TERMINAL, module
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"print", "exit", "input"}, module


def test_the_rules_can_be_broken() -> None:
    tree = ast.parse(
        "from moeits.stages.prune import prune\ndef f():\n    import torch\n    from moeits.command_line import app"
    )
    assert own_imports(tree) == {"stages.prune", "command_line.app"}
    assert "outside" not in DOORS["words"].split()
    assert {"torch"}.isdisjoint(imported(at_module_level(tree)))
    assert "torch" in set(imported(at_module_level(ast.parse("if True:\n    import torch"))))


@pytest.mark.parametrize("statement", ["import moeits", "import moeits.command_line.app"])
def test_importing_moeits_imports_nothing_heavy(statement: str) -> None:
    """Also as a whole: no detour over a dependency may bring torch in."""
    heavy = "('torch', 'transformers', 'peft', 'lm_eval', 'datasets', 'matplotlib', 'codecarbon')"
    code = f"import sys\n{statement}\nprint([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
