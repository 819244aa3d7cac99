"""--config: the flags of any command from a YAML file, as if they had been typed; what is typed wins."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer.main

import moeits
from moeits.command_line import app as cli
from moeits.command_line.config_file import configured_by
from moeits.command_line.flags import flag
from moeits.errors import MoeitsError, SettingError

COMMANDS: dict[str, Any] = typer.main.get_command(cli.application()).commands  # type: ignore[attr-defined]
PARSED = {"targets": "router,experts", "projection_weights": "gate=1,up=2,down=1"}


def written(folder: Path, values: dict[str, Any] | str) -> Path:
    (folder / "config.yaml").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder / "config.yaml"


def values_of(name: str, number: int) -> dict[str, Any]:
    """A value for every flag of a command, another for every `number`."""
    stage = cli.stage_of(name)
    kinds: dict[Any, Any] = {bool: True, int: number, float: number + 0.5, dict: None}
    values = {}
    for own in (parameter.name for parameter in COMMANDS[name].params if parameter.name != "config"):
        kind = get_args(flag(stage, own))[0]
        plain = kind if get_origin(kind) is list or kind in kinds else next(iter(get_args(kind)), kind)
        if get_origin(plain) is list:
            values[own] = [f"{own}-{number}", "another"]
        else:
            values[own] = kinds.get(plain, f"{own}-{number}") if plain is not dict else PARSED[own]
    return values


def typed(name: str, values: dict[str, Any]) -> Iterator[str]:
    """The same values as words of a command line."""
    for parameter in COMMANDS[name].params:
        value = values.get(parameter.name)
        if value is None:
            continue
        if parameter.param_type_name == "argument":
            yield from value if isinstance(value, list) else [value]
        elif value is True:
            yield parameter.opts[0]
        else:
            yield from (parameter.opts[0], str(value))


def taken(name: str, *words: str) -> dict[str, Any]:
    """What the function of a command would be given."""
    return {
        own: value for own, value in COMMANDS[name].make_context(name, list(words)).params.items() if own != "config"
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_with_every_flag_is_the_same_as_typing_them(tmp_path: Path, name: str) -> None:
    values = values_of(name, 3)
    expected = taken(name, *typed(name, values))
    hyphens = {own.replace("_", "-"): value for own, value in values.items()}
    section = {name: values, "plan" if name != "plan" else "score": {"json": True}, "model": "M"}
    assert len(expected) == len(values)
    for said in (values, hyphens, section):
        assert taken(name, "--config", str(written(tmp_path, said))) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_typed_wins(tmp_path: Path, name: str) -> None:
    config = str(written(tmp_path, values_of(name, 3)))
    other = {own: value for own, value in values_of(name, 4).items() if own not in PARSED}
    assert taken(name, "--config", config, *typed(name, other)) == taken(name, *typed(name, values_of(name, 4)))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("quite: true", "has a key 'quite', but moeits {} has no such flag. Did you mean 'quiet'?"),
        ("json: many", "json in {{file}} should be true or false; it is 'many'."),
        ("log: 7", "log in {{file}} should be a text; it is 7. Write it in quotes."),
        ("log: a\nlog: b", "has 'log' twice. Leave one."),
        ("{}: 3", "should have flags below it"),
        ("{}:\nlayuot: 3", "has 'layuot' beside {0}, where only other commands may stand: put a flag of {0} below it."),
        (
            "{}:\nprunne:",
            "beside {0}, where only other commands may stand: put a flag of {0} below it. Did you mean 'prune'?",
        ),
        ("- log", "should have keys such as output."),
        ("log: [", "is not YAML that a config file can be read from"),
        ("log: !!python/object/apply:os.getcwd []", "is not YAML that a config file can be read from"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    said: str,
    sentence: str,
) -> None:
    file = written(tmp_path, said.format(name))
    monkeypatch.setattr(sys, "argv", ["moeits", name, "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert sentence.format(name).replace("{file}", str(file)) in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_of_it_and_no_command_has_a_flag_that_reads_like_its_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["moeits", name, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert re.search(r"--config +FILE", capsys.readouterr().out)
    assert name.replace("-", "_") not in {parameter.name for parameter in COMMANDS[name].params}


def test_texts_in_a_list_are_a_flag_with_commas(tmp_path: Path) -> None:
    file = written(tmp_path, "tasks: [arc_easy, hellaswag]\nlimit: 5\nlog:\n")
    assert configured_by(file, moeits.evaluate) == {"tasks": "arc_easy,hellaswag", "limit": 5}
    with pytest.raises(SettingError, match=r"tasks in .* should be"):
        configured_by(written(tmp_path, "tasks: [arc_easy, [hellaswag]]"), moeits.evaluate)


def test_both_spellings_of_a_section_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has both compare-criteria and compare_criteria"):
        configured_by(written(tmp_path, "compare_criteria: {}\ncompare-criteria: {}"), moeits.compare_criteria)


@pytest.mark.parametrize("value", ["3", "{gate: a}", "{1: 2}", "[1, 2]", "true"])
def test_what_has_a_parser_is_checked_too(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingError, match=r"projection_weights in .* should be a mapping to numbers"):
        configured_by(written(tmp_path, f"projection-weights: {value}"), moeits.score)
    given = configured_by(written(tmp_path, "projection-weights: {gate: 0.5, up: 0.25, down: 0.25}"), moeits.score)
    assert given == {"projection_weights": {"gate": 0.5, "up": 0.25, "down": 0.25}}


def test_a_command_runs_from_its_file_and_from_a_recipes_section(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["moeits", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, capsys.readouterr().err

    run("simplify", toy, "--experts-per-layer", 3, "--seed", 1, "--criterion", "random", "-o", tmp_path / "typed")
    config = f"experts_per_layer: 3\ncriterion: random\nseed: 1\nmodel: {toy}\noutput: {tmp_path / 'file'}\n"
    run("simplify", "--config", written(tmp_path, config))
    recipe = f"model: {toy}\nsimplify: {{experts_per_layer: 4, criterion: random, seed: 1}}\n"
    run("simplify", toy, "--config", written(tmp_path, recipe), "--experts-per-layer", 3, "-o", tmp_path / "section")
    plans = {(tmp_path / each / "plan.json").read_bytes() for each in ("typed", "file", "section")}
    assert len(plans) == 1


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MoeitsError, match="cannot be read as a config file: No such file"):
        COMMANDS["inspect"].make_context("inspect", ["--config", str(tmp_path / "none.yaml")])
