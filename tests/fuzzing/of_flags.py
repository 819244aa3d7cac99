"""What a person asks for: recipes, sizes, command lines."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import moeits
from moeits.choosing.settings import share
from moeits.errors import SettingError
from moeits.experts.families import ARCHITECTURES
from moeits.healing.recipe import RECIPES, recipe_named
from moeits.sizes import parse_size
from moeits.stages.sweep import parse_taus
from tests.fuzzing.mutations import as_json, mutated_words, strange_text, strange_value
from tests.fuzzing.parser import Parser, Refused, toy


def recipes(folder: Path) -> Parser:  # noqa: ARG001
    fields = RECIPES["small"].facts() | {"targets": "experts,router"}

    def mutant(random: Random) -> bytes:
        changes = {
            name: random.choice((value, strange_value(random), strange_text(random)))
            for name, value in fields.items()
            if random.random() < 0.2
        }
        return as_json({"recipe": random.choice((*RECIPES, strange_text(random))), "changes": changes})

    def feed(content: bytes) -> None:
        try:
            asked = json.loads(content)
        except (ValueError, RecursionError):  # what Python itself cannot hold is not a recipe
            raise SettingError("not a value") from None
        for architecture in ARCHITECTURES[:3]:
            recipe_named(asked["recipe"], architecture).changed(asked["changes"])

    return Parser("recipes", (as_json({"recipe": "small", "changes": fields}),), mutant, feed)


def sizes(folder: Path) -> Parser:  # noqa: ARG001
    readers: dict[str, Callable[[str], Any]] = {
        "--max-size": lambda text: parse_size(text, "--max-size"),
        "--tau": parse_taus,
        "--reduction": share,
    }
    valid = (
        ("--max-size", "12GiB"),
        ("--max-size", "1.5 MB"),
        ("--tau", "0.5:5:0.25"),
        ("--tau", "1,2"),
        ("--reduction", "0.5"),
        ("--reduction", "50%"),
    )

    def mutant(random: Random) -> bytes:
        flag, text = random.choice(valid)
        return f"{flag} ".encode() + " ".join(mutated_words([text], random)).encode("utf-8", "surrogatepass")

    def feed(content: bytes) -> None:
        flag, _, text = content.decode("utf-8", "surrogatepass").partition(" ")
        readers[flag](text)

    return Parser("sizes, taus, shares", tuple(f"{flag} {text}".encode() for flag, text in valid), mutant, feed)


def command_line(folder: Path) -> Parser:
    from moeits.command_line.app import main

    model, scores, made, out = (
        toy(folder / "model"),
        folder / "scores.safetensors",
        folder / "plan.json",
        folder / "out",
    )
    moeits.plan(moeits.score(model, output=scores), reduction=0.3, output=made)
    nowhere = str(folder / "nowhere")
    valid = (
        ["inspect", str(model), "--reduction", "0.5"],
        ["inspect", str(made), "--json"],
        ["plan", str(scores), "--tau", "1", "--min-experts", "2", "--output", f"{out}.json"],
        [
            "plan",
            str(scores),
            "--experts-per-layer",
            "3",
            "--criterion",
            "random",
            "--seed",
            "3",
            "--output",
            f"{out}.json",
        ],
        ["--version"],
    )
    # Stages that would train or run a model: of a model that is not there, so that what is read are the flags.
    refused = (
        ["heal", nowhere, "--data", nowhere, "--steps", "3", "--learning-rate", "1e-3", "--output", str(out)],
        ["evaluate", nowhere, "--tasks", "x", "--limit", "3", "--output", str(out)],
        ["measure", nowhere, "--repeats", "3"],
        ["sweep", nowhere, "--tau", "0:1:0.5", "--output", str(out)],
        ["simplify", nowhere, "--reduction", "0.5", "--bins", "64", "--output", str(out)],
    )

    def mutant(random: Random) -> bytes:
        return json.dumps(mutated_words(random.choice((*valid, *refused)), random)).encode()

    def feed(content: bytes) -> None:
        words = json.loads(content)
        said, wrong = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", ["moeits", *words]),
            mock.patch("gc.set_threshold"),
            mock.patch("atexit.register"),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(wrong),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        sentence = wrong.getvalue()
        if code == 2 and not sentence and "Usage: moeits" in said.getvalue():
            raise Refused("help, where no command was given")
        if code == 2:
            assert sentence.startswith("moeits: "), sentence
            assert sentence.count("\n") == 1, sentence
            assert sentence.rstrip("\n").isprintable(), sentence
            raise Refused(sentence)
        assert code == 0, (code, sentence)

    return Parser("command line", tuple(json.dumps(words).encode() for words in valid), mutant, feed)
