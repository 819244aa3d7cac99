"""What a killed run left, damaged: it is done again, or the run goes on with it."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import moeits
from tests.evaluation_toys import give_tokenizer
from tests.fuzzing.mutations import mutated_bytes, strange_text
from tests.fuzzing.of_plans import damaged
from tests.fuzzing.parser import Parser, toy


class Stopped(BaseException):
    """As Ctrl-C: not an Exception, so that nobody in between catches it."""


def _stop_at_the_second_layer(stage: str, done: int, total: int) -> None:
    """A progress that ends the run as soon as one layer is finished."""
    if "layers" in stage or ("scoring" in stage and 2 * done > total):
        raise Stopped


def _finished(name: str, folder: Path, run: Callable[..., Any]) -> Parser:
    """Stops `run` after a layer, and runs it to the end with mutants of what it left below the folder."""
    from safetensors.numpy import load, save

    with contextlib.suppress(Stopped):
        run(progress=_stop_at_the_second_layer)
    (file,) = folder.rglob("layer-*")
    content = file.read_bytes()
    arrays = load(content)

    def mutant(random: Random) -> bytes:
        if random.random() < 0.4:
            return mutated_bytes(content, random)
        made, chosen = dict(arrays), random.choice(list(arrays))
        kind = random.randrange(3)
        if kind == 0:
            del made[chosen]
        elif kind == 1:
            made[strange_text(random).encode("utf-8", "replace").decode()[:200]] = made.pop(chosen)
        else:
            made[chosen] = damaged(made[chosen].copy(), random)
        return save(made)

    def feed(text: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
        run()

    return Parser(name, (content,), mutant, feed)


def finished_scores(folder: Path) -> Parser:
    """A layer of a scoring that was killed."""
    model, output = toy(folder / "model"), folder / "scores.safetensors"

    def score(**progress: Any) -> None:
        output.unlink(missing_ok=True)
        moeits.score(model, output=output, signals="aimer,router-cosine", **progress)

    return _finished("finished layers of score", folder, score)


def finished_calibration(folder: Path) -> Parser:
    """A layer of a calibration that was killed."""
    model, output = toy(folder / "model", dtype="float32"), folder / "tokens.safetensors"
    give_tokenizer(model)

    def calibrate(**progress: Any) -> None:
        output.unlink(missing_ok=True)
        moeits.calibrate(model, output=output, tokens=256, held_out=256, window=32, selection=64, **progress)

    return _finished("finished layers of calibrate", folder, calibrate)


def finished_refit(folder: Path) -> Parser:
    """A layer of a refit that was killed."""
    model, pruned, output = toy(folder / "model", dtype="float32"), folder / "pruned", folder / "refitted"
    give_tokenizer(model)
    moeits.prune(model, plan=moeits.plan(moeits.score(model), experts_per_layer=2), output=pruned)

    def refit(**progress: Any) -> None:
        shutil.rmtree(output, ignore_errors=True)
        moeits.refit(pruned, parent=model, output=output, tokens=256, held_out=256, window=32, **progress)

    return _finished("finished layers of refit", folder, refit)
