"""How large a thing may be, and what no message says (CONTRIBUTING.md), read off the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "moeits"
MODULES = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}

LONGEST_FUNCTION, MOST_PARAMETERS, LONGEST_MODULE = 50, 12, 400

# "There is no task 'x'" and "is no longer" are English; "x is no task" is not.
DIALECT = re.compile(r"(?<!\bthere )\b(?:is|are) no (?!longer\b|more\b)|makes? no sense|\bstands in\b", re.I)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    yield from (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: Function) -> int:
    a = function.args
    return len([*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))])


def messages(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is not a docstring; of an f-string what stands between its values."""
    tree = ast.parse(text)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.lineno, node.value


def dialect(text: str) -> list[tuple[int, str]]:
    return [(line, message) for line, message in messages(text) if DIALECT.search(message)]


def test_a_function_fits_on_a_screen() -> None:
    long = {
        f"{module}: {function.name}, {lines_of(function)} lines"
        for module, text in MODULES.items()
        for function in functions(text)
        if lines_of(function) > LONGEST_FUNCTION
    }
    assert not long


def test_a_signature_can_be_read() -> None:
    many = {
        f"{module}: {function.name}, {parameters_of(function)} parameters"
        for module, text in MODULES.items()
        for function in functions(text)
        if parameters_of(function) > MOST_PARAMETERS
    }
    assert not many


def test_a_module_has_one_idea() -> None:
    long = {name: lines for name, text in MODULES.items() if (lines := text.count("\n")) > LONGEST_MODULE}
    assert not long


def test_messages_are_in_the_english_of_the_field() -> None:
    said = [f"{module}:{line}: {text!r}" for module, source in MODULES.items() for line, text in dialect(source)]
    assert not said


def test_the_rules_can_be_broken() -> None:
    text = "def f(a, *b, c, **d):\n    '''x is no doc.'''\n    raise E(f'{a} is no file', 'There is no file {a}')\n"
    (function,) = functions(text)
    assert (lines_of(function), parameters_of(function)) == (3, 4)
    assert dialect(text) == [(3, " is no file")]
    assert all(DIALECT.search(said) for said in ("--tau makes no sense", "these are no plans", "It stands in a.json"))
    assert not any(DIALECT.search(said) for said in ("It is no longer there", "there are no plans", "a notion"))
