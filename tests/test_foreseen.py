"""A dry run says what a run would take, writes nothing, and refuses what the run would refuse, in the same sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moeits
from moeits import foreseen
from moeits.command_line import app as cli
from moeits.edits import EDITS
from moeits.errors import MoeitsError
from moeits.foreseen import Foreseen, Line, Work, copying, line_through
from tests.evaluation_toys import write_jsonl
from tests.healing_toys import texts, write_rows
from tests.trial_toys import make_pruned_toy

ROOT = Path(__file__).parents[1]
SMALL = {"tokens": 256, "held_out": 256, "window": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy, what pruning left of it, its plan, a text and rows to heal on."""
    made = make_pruned_toy(tmp_path_factory.mktemp("foreseen"))
    write_jsonl(made / "text.jsonl", [{"text": "to be or not to be"}] * 12)
    write_rows(made / "rows.jsonl", texts(24))
    return made


def arguments(folder: Path, output: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Verb -> what it is called with."""
    toy, pruned, text = folder / "toy", folder / "pruned", folder / "text.jsonl"
    return {
        "score": (toy, {"output": output / "scores.safetensors"}),
        "prune": (toy, {"plan": pruned / "plan.json", "output": output / "again"}),
        "simplify": (toy, {"reduction": 0.5, "output": output / "half"}),
        "calibrate": (toy, {"output": output / "signals.safetensors", **SMALL}),
        "refit": (pruned, {"parent": toy, "output": output / "refitted", **SMALL}),
        "heal": (
            pruned,
            {
                "data": folder / "rows.jsonl",
                "recipe": "small",
                "steps": 2,
                "dtype": "float32",
                "output": output / "healed",
            },
        ),
        "evaluate": (pruned, {"perplexity": text, "dtype": "float32", "output": output / "results.json"}),
        "measure": (
            pruned,
            {"prompt_tokens": 8, "new_tokens": 2, "dtype": "float32", "output": output / "footprint.json"},
        ),
        "sweep": (toy, {"tau": "1,2", "perplexity": text, "dtype": "float32", "output": output / "sweep"}),
        "forecast": (toy, {"reductions": "0.5", "output": output / "forecast.json", **SMALL}),
        "compare_criteria": (
            toy,
            {"criteria": "moeits,reap,random", "perplexity": text, "output": output / "criteria", **SMALL},
        ),
    }


VERBS = list(arguments(Path(), Path()))


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything in a folder, with the time and size of each."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_writes_nothing_and_says_what_a_run_would_take(verb: str, folder: Path, tmp_path: Path) -> None:
    model, given = arguments(folder, tmp_path)[verb]
    before = state(folder), state(tmp_path)
    found = getattr(moeits, verb)(model, **given, dry_run=True)
    assert (state(folder), state(tmp_path)) == before
    assert isinstance(found, Foreseen)
    assert found.source == model.name
    assert found.output == str(given["output"])
    assert found.reads_bytes > 0
    assert found.disk_free_bytes > 0
    assert 0 < found.seconds == pytest.approx(sum(work.times * work.seconds_each for work in found.work))


def test_verbs_that_work_long_have_a_dry_run_and_no_other_has() -> None:
    commands = {name for name in cli.COMMANDS if "dry_run" in cli.signatures.signature(cli.stage_of(name)).parameters}
    assert {name.replace("-", "_") for name in commands} == set(VERBS)


WRONG: dict[str, dict[str, Any]] = {
    "score": {"memory": "much"},
    "prune": {"layout": "uniformly"},
    "simplify": {"reduction": 0.99},
    "calibrate": {"data": "nowhere.jsonl"},
    "refit": {"parent": "pruned"},
    "heal": {"data": "nowhere.jsonl"},
    "evaluate": {"perplexity": "nowhere.jsonl"},
    "measure": {"prompt_tokens": 10**6},
    "sweep": {"perplexity": "nowhere.jsonl"},
    "forecast": {"reductions": "0.99"},
    "compare_criteria": {"perplexity": "nowhere.jsonl"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_run_refuses_its_dry_run_refuses_in_the_same_sentence(verb: str, folder: Path, tmp_path: Path) -> None:
    model, given = arguments(folder, tmp_path)[verb]
    given |= WRONG[verb] if verb != "refit" else {"parent": folder / "pruned"}
    said = []
    for dry_run in (True, False):
        with pytest.raises(MoeitsError) as refused:
            getattr(moeits, verb)(model, **given, dry_run=dry_run)
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_what_a_checkpoint_will_weigh_is_what_it_weighs(folder: Path, tmp_path: Path) -> None:
    model, given = arguments(folder, tmp_path)["prune"]
    found = moeits.prune(model, **given, dry_run=True)
    moeits.prune(model, **given)
    assert found.writes_bytes == moeits.Checkpoint.open(given["output"]).nbytes


def test_tokens_of_a_text_are_those_that_an_evaluation_reads(folder: Path, tmp_path: Path) -> None:
    model, given = arguments(folder, tmp_path)["evaluate"]
    found = moeits.evaluate(model, **given, dry_run=True)
    counted = moeits.evaluate(model, **given).perplexity["tokens"]
    told = next(work.what for work in found.work if "through the model" in work.what)
    # Of every document the token that begins it is read too, and no window is read twice: the text is short.
    assert told.startswith(f"{counted + 12:,} tokens of text.jsonl")


def test_what_cannot_be_foreseen_is_said_and_not_guessed(folder: Path) -> None:
    found = moeits.evaluate(folder / "pruned", tasks="arc_easy", dry_run=True)
    assert any("arc_easy" in sentence for sentence in found.not_foreseen)
    assert not any("through the model" in work.what for work in found.work)
    written = moeits.calibrate(folder / "toy", data="self", dry_run=True, **SMALL)
    assert any("writes its own text" in sentence for sentence in written.not_foreseen)


@pytest.mark.parametrize("edit", [edit.name for edit in EDITS])
def test_the_work_of_an_edit_is_not_counted_and_that_is_said(edit: str, folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mask": {"mask_by": "magnitude"}, "low-rank": {"rank_power": 0.0}}.get(edit, {})
    settings |= {"bit_widths": "3"} if edit == "quantize" else {}
    toy, asked = folder / "toy", {"reduction": 0.5, "edit": edit, **settings}
    plan = moeits.plan(moeits.score(toy), **asked)
    for found in (
        moeits.prune(toy, plan=plan, output=tmp_path / "out", dry_run=True),
        moeits.simplify(toy, output=tmp_path / "out", dry_run=True, **asked),
    ):
        said = [sentence for sentence in found.not_foreseen if f"--edit {edit} computes" in sentence]
        assert len(said) == (edit != "none")
    assert edit == "none" or f"`{edit}`" in (ROOT / "docs" / "estimates.md").read_text()


def test_a_line_is_followed_from_two_sizes_to_the_size_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def seconds(work: Callable[[], object]) -> float:
        work()
        return 3 + 0.5 * done[-1]

    monkeypatch.setattr(foreseen, "timed", seconds)
    line = line_through(done.append, (10, 30))
    assert line == Line(fixed=3, each=0.5)
    assert line.at(1000) == 503
    assert done[:1] == [10], "the first time, in which things are made ready, does not count"


def test_seconds_are_of_all_work_that_could_be_timed() -> None:
    known, unknown = Work(what="a", times=3, seconds_each=2), Work(what="b", times=1, seconds_each=None)
    facts = {"source": "toy", "output": None, "disk_bytes": 0, "disk_free_bytes": None}
    assert Foreseen(work=(known.repeated(2), unknown), **facts).seconds == 12
    assert Foreseen(work=(unknown,), **facts).seconds is None


def test_trying_to_write_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    work = copying(1000, moeits.Checkpoint.open(folder / "toy").shards[0], tmp_path / "output")
    assert work.seconds_each > 0
    assert state(tmp_path) == before
    nowhere = copying(1000, moeits.Checkpoint.open(folder / "toy").shards[0], Path("/proc/self/output"))
    assert nowhere.seconds_each is None


def test_a_person_is_shown_sizes_and_time_and_a_program_gets_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["calibrate", folder / "toy", "--tokens", 256, "--held-out", 256, "--window", 16]
    asked += ["--output", tmp_path / "signals.safetensors", "--dry-run"]
    shown = []
    for further in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["moeits", *map(str, asked + further)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in {0, None}
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith("dry run: nothing was written\n")
    assert "time         about" in shown[0]
    facts = json.loads(shown[1])
    assert facts["work"][0]["what"] == "starting the program, and checking"
    assert facts["seconds"] > facts["work"][0]["seconds_each"] > 0
