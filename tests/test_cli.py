"""The command line: what it takes, what it shows to a person, to a machine, and in a pipe."""

import inspect
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main

import moeits
from moeits import console
from moeits.command_line import app as cli
from moeits.command_line.examples import EXAMPLES
from moeits.command_line.flags import WAYS
from moeits.demo import MODEL
from tests.evaluation_toys import give_tokenizer, make_speaking_toy
from tests.healing_toys import texts, write_rows
from tests.toys import make_toy

STAGES = {name: cli.stage_of(name) for name in cli.COMMANDS}
COMMANDS: dict[str, Any] = typer.main.get_command(cli.application()).commands  # type: ignore[attr-defined]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run a command that should succeed; returns what it wrote to its two outputs."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["moeits", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code in {0, None}, err
        return out, err

    return command


# ---------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("name", STAGES)
def test_the_flags_of_a_command_are_the_arguments_of_its_function(name: str) -> None:
    arguments = {parameter for parameter in inspect.signature(STAGES[name]).parameters if parameter != "progress"}
    assert {parameter.name for parameter in COMMANDS[name].params} == {*arguments, *WAYS, "config"}


@pytest.mark.parametrize("name", STAGES)
def test_a_flag_is_spelt_like_its_argument_and_has_its_default(name: str) -> None:
    for own, parameter in inspect.signature(STAGES[name]).parameters.items():
        if own == "progress":
            continue
        flag = next(flag for flag in COMMANDS[name].params if flag.name == own)
        if flag.param_type_name == "option":
            assert "--" + own.replace("_", "-") in flag.opts
            assert parameter.kind == parameter.KEYWORD_ONLY, f"{name}({own}) can be given without its name"
        if parameter.default is not parameter.empty:
            required = own == "output" and name in cli.MADE_FOR_LATER
            assert required or flag.default == parameter.default or (flag.default is None and not parameter.default), (
                own
            )
        else:
            assert flag.required, own


@pytest.mark.parametrize("name", STAGES)
def test_every_flag_says_what_it_is_for(name: str) -> None:
    for flag in COMMANDS[name].params:
        assert flag.help, f"{name} --{flag.name}"
        assert flag.help.endswith("."), f"{name} --{flag.name}: {flag.help}"


@pytest.mark.parametrize("name", [*STAGES, ""])
def test_help_works_and_says_what_the_command_does(
    run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out, err = run(*([name] if name else []), "--help")
    assert err == ""
    assert "Usage" in out
    for flag in COMMANDS[name].params if name else ():
        if getattr(flag, "hidden", False):
            continue
        shown = flag.opts[0] if flag.param_type_name == "option" else flag.metavar
        assert shown.removesuffix("...") in out


@pytest.mark.parametrize("name", STAGES)
def test_help_speaks_of_flags_and_shows_choices(
    run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out, _ = run(name, "--help")
    named = {parameter for parameter in inspect.signature(STAGES[name]).parameters if "_" in parameter}
    assert not {parameter for parameter in named if parameter in out}, "a flag is spelt with hyphens"
    for flag in COMMANDS[name].params:
        choices = {"criterion": "random", "layout": "per-layer", "preset": "authors-code", "recipe": "router-only"}
        if flag.name in choices:
            shown = f"{flag.metavar.replace('|', ' ')} {flag.help.rpartition('One of: ')[2]}"
            assert choices[flag.name] in re.findall(r"[\w-]+", shown)


@pytest.mark.parametrize("name", STAGES)
def test_help_ends_with_two_examples_whose_flags_exist(
    run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = [line.strip() for line in run(name, "--help")[0].splitlines()]
    assert len(EXAMPLES[name]) == 2
    for example in EXAMPLES[name]:
        assert example in shown
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("moeits", name)
        with pytest.raises(typer.TyperException, match="nothing"):
            COMMANDS[name].make_context(name, [*arguments, "--nothing"])
        COMMANDS[name].make_context(name, arguments)


def test_the_examples_of_the_straight_line_run_as_printed(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    toy.rename("MODEL")
    for name in ("inspect", "score", "plan", "prune", "simplify"):
        for example in EXAMPLES[name]:
            run(*shlex.split(example)[1:])
    run(*shlex.split(EXAMPLES["sweep"][0])[1:])
    assert {path.name for path in Path().iterdir()} >= {
        "plan.json",
        "control.json",
        "SMALLER",
        "UNIFORM",
        "HALF",
        "RUN",
    }


@pytest.mark.parametrize("name", ["score", "plan"])
def test_what_takes_minutes_is_not_thrown_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Path, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["moeits", name, str(toy)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_nothing_is_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["nats_per_token_and_more" * 3] * 9
    console.table(long, [long])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [long, long]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError("a failing disk")])
def test_a_failing_system_without_a_file_is_a_sentence_without_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "application", lambda *_: fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"moeits: {error.strerror or error}. Check the disk and the path.\n"


def test_a_command_imports_its_own_stage_and_no_other() -> None:
    code = (
        "import sys, moeits.__main__\n"
        "sys.argv = ['moeits', 'score', '--help']\n"
        "try: moeits.__main__.main()\n"
        "finally: print([name for name in sys.modules if name.startswith('moeits.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'moeits.stages.score'" in done.stderr
    for other in ("stages.heal", "stages.report", "stages.sweep", "report_page.rows", "console.healing"):
        assert f"'moeits.{other}'" not in done.stderr


def test_the_commands_are_the_functions_of_the_package() -> None:
    public = {name for name in moeits.__all__ if inspect.isfunction(getattr(moeits, name))}
    assert {name.replace("_", "-") for name in public - {"load"}} == set(STAGES)


def test_version(run: Callable[..., tuple[str, str]]) -> None:
    assert run("--version") == (f"moeits {moeits.__version__}\n", "")


def test_without_a_command_there_is_help_and_no_error_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["moeits"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert "simplify" in out + err
    assert "moeits: \n" not in out + err


# ---------------------------------------------------------------------------------------------------------- output


@pytest.fixture
def line(toy: Path, run: Callable[..., tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Every command of the straight line from checkpoint to checkpoint, and what it wrote for machines."""
    calls = {
        "inspect": ["toy"],
        "score": ["toy", "--output", "e.safetensors"],
        "plan": ["e.safetensors", "--tau", "0.5", "--output", "plan.json"],
        "prune": ["toy", "--plan", "plan.json", "--output", "pruned"],
        "simplify": ["toy", "--tau", "0.5", "--output", "simplified"],
        "sweep": ["toy", "--tau", "0.5:1.5:0.5", "--output", "run"],
    }
    assert toy.name == "toy"
    return {name: run(name, *arguments, "--json") for name, arguments in calls.items()}


def test_json_is_all_that_is_printed_and_can_be_read_by_a_machine(
    line: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    assert {err for _, err in line.values()} == {""}, "in a pipe there is nothing but the result"
    values = {name: json.loads(out) for name, (out, _) in line.items()}
    assert values["plan"] == values["prune"] == values["simplify"] == json.loads((tmp_path / "plan.json").read_text())
    assert values["inspect"]["layers"][0] == {"layer": 0, "experts": 6, "experts_before": None, "top_k": 2}
    assert values["score"]["redundancy"].keys() == {"0", "1", "2"}


@pytest.mark.slow
def test_what_models_were_asked_is_json_for_a_machine_too(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    make_speaking_toy(tmp_path / "toy", experts=4, layers=2)
    write_rows(tmp_path / "rows.jsonl", texts(12))
    (tmp_path / "text.txt").write_text("to be or not " * 20)
    recipe = ("--recipe", "small", "--steps", 1, "--rank", 1, "--batch-size", 1, "--sequence-length", 16)
    calls = {
        "heal": ("toy", "--data", "rows.jsonl", "--output", "healed", *recipe),
        "evaluate": ("toy", "--perplexity", "text.txt", "--output", "results.json"),
        "measure": ("toy", "--no-run", "--output", "footprint.json"),
    }
    files = {"heal": "healed/healing.json", "evaluate": "results.json", "measure": "footprint.json"}
    for name, arguments in calls.items():
        out, err = run(name, *arguments, "--json")
        said, kept = json.loads(out), json.loads((tmp_path / files[name]).read_text())
        assert err == ""
        assert said.keys() & kept.keys(), name
        assert {key: said[key] for key in said.keys() & kept.keys()} == {
            key: kept[key] for key in said.keys() & kept.keys()
        }


def test_a_plan_is_shown_layer_by_layer_with_its_totals(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, err = run("simplify", "toy", "--tau", "0.5", "--output", "out")
    plan = moeits.PruningPlan.load("out/plan.json")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["layer", "experts", "kept", "stopped", "at"]
    for row, (layer, kept) in zip(rows[1:4], plan.kept.items(), strict=True):
        assert row[:3] == [str(layer), "6", str(len(kept))]
        left = [level for expert, level in plan.order[layer] if expert in kept]
        assert row[3] == (f"{left[0]:.5f}" if left else "floor")
    total = " ".join(rows[4])
    assert f"{plan.summary['experts_kept']} of 18 experts kept" in total
    assert f"P(down) {plan.summary['reduction']:.2%}" in total
    assert "KiB -> " in total
    assert rows[-1] == ["written:", "out"]
    assert err == ""
    assert toy.is_dir()


def test_an_inspection_says_what_a_checkpoint_holds(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, _ = run("inspect", toy)
    assert "checkpoint of toy (qwen2_moe)" in out
    assert ["0", "to", "2", "6", "2"] in [line.split() for line in out.splitlines()]
    assert "18 routed experts" in out
    assert "stored per-expert, in 1 file" in out


def test_an_inspection_of_a_plan_shows_before_and_after(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    run("simplify", toy, "--experts-per-layer", "4", "--output", "out")
    out, _ = run("inspect", "out/plan.json")
    assert ["layers", "experts", "kept"] in [line.split() for line in out.splitlines()]
    assert ["0", "to", "2", "6", "4"] in [line.split() for line in out.splitlines()]


def test_an_edited_plan_is_shown_with_its_own_numbers(
    tmp_path: Path, toy: Path, run: Callable[..., tuple[str, str]]
) -> None:
    run("simplify", toy, "--experts-per-layer", "4", "--output", "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["kept"]["1"] = [0, 1]
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    shown = run("inspect", "edited.json")[0]
    parameters = moeits.inspect("edited.json").parameters
    assert f"10 experts kept; the checkpoint will have {parameters:,} parameters" in shown
    out, _ = run("prune", toy, "--plan", "edited.json", "--output", "edited")
    assert ["1", "2", "by", "hand"] in [[row.split()[0], *row.split()[2:]] for row in out.splitlines() if row.strip()]


def test_layers_at_their_floor_are_shown_with_their_size(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, _ = run("simplify", toy, "--tau", "0.5", "--min-experts", "6", "--output", "out", "--force")
    assert [row.split() for row in out.splitlines()[1:4]] == [[str(layer), "6", "6", "floor"] for layer in range(3)]


def test_alternating_layers_are_not_shown_as_a_range(tmp_path: Path, run: Callable[..., tuple[str, str]]) -> None:
    make_toy(tmp_path / "alternating", layers=4, decoder_sparse_step=2)
    out, _ = run("inspect", "alternating")
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["1", "3"]


def test_a_budget_is_answered_without_scoring(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, _ = run("inspect", toy, "--reduction", "0.5")
    assert "9 of 18 experts would stay (3.0 a layer)" in out


def test_projection_weights_can_be_given_by_hand(toy: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, _ = run("score", toy, "--output", "e.safetensors", "--projection-weights", "gate=0.5,up=0.5,down=0", "--json")
    assert json.loads(out)["settings"]["projection_weights"] == {"gate": 0.5, "up": 0.5, "down": 0.0}


def in_a_terminal(*command: str, cwd: Path) -> str:
    """What a command shows on a terminal."""
    here, there = pty.openpty()
    process = subprocess.Popen([*command], cwd=cwd, stdin=there, stdout=there, stderr=there)
    os.close(there)
    shown = b""
    while True:
        try:
            part = os.read(here, 4096)
        except OSError:  # Linux answers so when the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(here)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_progress_is_shown_on_a_terminal_and_only_there(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    command = (sys.executable, "-m", "moeits", "simplify", "toy", "--tau", "0.5", "--output")
    assert "writing tensors" in in_a_terminal(*command, "one", cwd=tmp_path)
    piped = subprocess.run([*command, "two"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert "writing" not in piped.stdout
    assert "\x1b" not in piped.stdout, "no colours in a pipe"


def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    shell = f"set -o pipefail; {sys.executable} -m moeits inspect toy --json | head -c 1"
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("{", "")


def test_interrupting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["moeits.stages.simplify"], "scored", interrupted)
    monkeypatch.setattr(sys, "argv", ["moeits", "simplify", str(toy), "--tau", "1", "--output", str(toy) + "-out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "moeits: Interrupted."


def test_an_interrupt_while_a_class_is_made_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrapped(cause: BaseException) -> None:
        raise RuntimeError("Error calling __set_name__") from cause

    monkeypatch.setattr(cli, "main", lambda: wrapped(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as ended:
        moeits.__main__.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "moeits: Interrupted.\n")
    monkeypatch.setattr(cli, "main", lambda: wrapped(ValueError()))
    with pytest.raises(RuntimeError):
        moeits.__main__.main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "toy/config.json"), "toy/config.json is a part of a checkpoint. Give its folder, toy, or"),
        (("inspect", "model.gguf"), "model.gguf is a file of tensors"),
        (
            ("simplify", "model.gguf", "--tau", "1", "--output", "out"),
            "model.gguf is a GGUF file, which moeits does not",
        ),
        (
            ("plan", "toy/config.json", "--tau", "1", "--output", "p.json"),
            "toy/config.json cannot be read: it is JSON, such as a plan. Give",
        ),
        (("simplify", "toy", "--tau", "much", "--output", "out"), "Invalid value for '--tau': it is not a"),
        (("report", "toy"), "Say where the report goes: --output report.html"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_give_instead(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_toy(Path("toy"))
    Path("model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\xff")
    monkeypatch.setattr(sys, "argv", ["moeits", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_is_a_command_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, shown in ((["help"], "COMMAND [ARGS]"), (["help", "plan"], "Usage: moeits plan")):
        monkeypatch.setattr(sys, "argv", ["moeits", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert shown in capsys.readouterr().out


def test_what_an_interrupted_run_left_is_named_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Path
) -> None:
    evidence = tmp_path / "e.safetensors"

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("scoring") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moeits.score(toy, output=evidence, progress=interrupt)
    monkeypatch.setattr(sys, "argv", ["moeits", "score", str(toy), "--output", str(evidence), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.err == f"note: going on after an interrupted run, which left 1 finished parts in {evidence}.partial.\n"
    assert json.loads(said.out)["source"] == toy.name


# ---------------------------------------------------------------------------------------------------------- demo


def test_the_demo_replaces_its_own_folder_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moeits.demo import __main__ as demo

    for name in ("mine", "mine/below"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for taken in ("mine", "file"):
        monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path / taken)])
        with pytest.raises(SystemExit) as ended:
            demo.main()
        assert ended.value.code == 2
        assert "is of no earlier demo. Remove it, or name another folder." in capsys.readouterr().err
    assert (tmp_path / "mine" / "below").is_dir()
    for free in ("new", "deep/new", "empty"):
        demo.new_folder(tmp_path / free)
        (tmp_path / free / "result").touch()
        demo.new_folder(tmp_path / free)
        assert not (tmp_path / free / "result").exists(), "the second demo begins with an empty folder"


def test_score_shows_what_has_no_noise_floor_and_names_what_is_kept_beside(
    run: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy", layers=2)
    asked = ("--estimator", "router-cosine", "--signals", "aimer,nmi", "--bins", "9")
    said, _ = run("score", toy, *asked, "--output", tmp_path / "evidence")
    redundancy = moeits.Evidence.load(tmp_path / "evidence").redundancy
    for layer, values in redundancy.items():
        largest = max(values[i, j] for i in range(6) for j in range(i))
        (row,) = (line.split() for line in said.splitlines() if line.split()[:2] == [str(layer), "6"])
        assert row[3:] == [f"{largest:.5f}", "-", "-"]
    assert "beside it, for each layer: aimer, nmi" in said


def test_plan_takes_evidence_of_one_checkpoint_from_several_files(run: Callable[..., tuple[str, str]]) -> None:
    scored = moeits.score(make_toy(Path("toy")), signals="aimer")
    replace(scored, redundancy={}, floor={}).save("signals")
    replace(scored, signals={}).save("scores")
    run("plan", "scores", "signals", "--criterion", "aimer", "--experts-per-layer", 3, "--output", "plan.json")
    assert json.loads(Path("plan.json").read_text())["criterion"] == "aimer"


def test_simplify_measures_the_signal_that_its_criterion_needs(run: Callable[..., tuple[str, str]]) -> None:
    toy = make_toy(Path("toy"))
    run("simplify", toy, "--criterion", "aimer", "--reduction", 0.4, "--output", "smaller")
    plan = moeits.plan(moeits.score(toy, signals="aimer"), criterion="aimer", reduction=0.4)
    assert json.loads(Path("smaller/plan.json").read_text())["kept"] == {
        str(layer): list(kept) for layer, kept in plan.kept.items()
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--tau", -100), "note: every layer stopped at its floor (top_k)"),
        (("--experts-per-layer", 1, "--min-experts", 1), "so top_k is lowered there (layer"),
        (("--max-size", "1GiB", "--force"), "note: nothing was removed: the model is within the budget as it is."),
        (("--tau", 0), "note: layers keep different numbers of experts: open it with moeits.load"),
    ],
)
def test_what_a_budget_did_that_nobody_may_have_meant_is_said(
    run: Callable[..., tuple[str, str]], asked: tuple[object, ...], said: str
) -> None:
    out, _ = run("simplify", make_toy(Path("toy")), *asked, "--output", "smaller")
    assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (("--max-size", "1GiB"), "toy is within that budget as it is"),
        (("--reduction", 0), "toy is within that budget as it is"),
        (("--tau", 100), "That tau removes no expert of toy"),
        (("--tau", 0, "--min-experts", 6), "Every layer of toy is at its floor: no expert can go"),
    ],
)
def test_a_model_that_fits_already_is_not_copied(
    run: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    budget: tuple[object, ...],
    said: str,
) -> None:
    toy = make_toy(Path("toy"))
    monkeypatch.setattr(sys, "argv", ["moeits", "simplify", str(toy), *map(str, budget), "--output", "smaller"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not Path("smaller").exists()
    run("simplify", toy, *budget, "--output", "smaller", "--force")
    assert (Path("smaller") / "plan.json").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["simplfy"], "No such command 'simplfy'. Did you mean 'simplify'? See: moeits --help"),
        (["prune"], "Missing argument 'MODEL'. See: moeits prune --help"),
    ],
)
def test_a_mistyped_command_is_answered_in_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["moeits", *typed])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"moeits: {said}\n"


def test_the_control_that_a_note_names_runs_as_printed(run: Callable[..., tuple[str, str]]) -> None:
    Path("a model").symlink_to(MODEL)  # every layer of it sits on the noise floor
    run("score", "a model", "--output", "e.safetensors")
    for made, control in (
        (("simplify", "a model", "--reduction", 0.4, "--output", "smaller"), "smaller-random/plan.json"),
        (("plan", "e.safetensors", "--reduction", 0.4, "--output", "plan.json"), "plan-random.json"),
        (("prune", "a model", "--plan", "plan.json", "--output", "pruned"), "pruned-random/plan.json"),
    ):
        out, _ = run(*made)
        (said,) = (line for line in out.splitlines() if line.startswith("Compare with the control: moeits "))
        run(*shlex.split(said.split(": moeits ")[1]))
        kept = json.loads(Path(control).read_text())
        assert kept["criterion"] == "random"
        assert kept["summary"]["experts_kept"] < kept["summary"]["experts_before"]


# ------------------------------------------------------------------------------------------------------- dry runs


@pytest.mark.parametrize("budget", [("--reduction", "50%"), ("--max-size", "60KiB"), ("--experts-per-layer", 4)])
def test_a_dry_run_of_simplify_says_what_will_be_left_and_writes_nothing(
    run: Callable[..., tuple[str, str]], budget: tuple[object, ...]
) -> None:
    toy = make_toy(Path("toy"))
    before = sorted(Path.cwd().rglob("*"))
    rehearsed = json.loads(run("simplify", toy, *budget, "--output", "smaller", "--dry-run", "--json")[0])
    assert sorted(Path.cwd().rglob("*")) == before
    plan = json.loads(run("simplify", toy, *budget, "--output", "smaller", "--json")[0])
    assert rehearsed["experts_kept"] == plan["summary"]["experts_kept"]
    assert rehearsed["bytes_after"] == plan["summary"]["bytes_after"] == rehearsed["disk_bytes"]
    assert 0 < rehearsed["scoring_seconds"] < 60
    assert rehearsed["scoring_memory_bytes"] <= 2**31


def test_a_dry_run_counts_what_lies_beside_a_refit_and_says_what_only_scores_tell(
    run: Callable[..., tuple[str, str]],
) -> None:
    give_tokenizer(toy := make_toy(Path("toy")))
    refitted = json.loads(
        run("simplify", toy, "--reduction", 0.4, "--refit", "--output", "smaller", "--dry-run", "--json")[0]
    )
    assert refitted["disk_bytes"] == 2 * refitted["bytes_after"]
    assert refitted["watched_tokens"] == 32768
    assert 0 < refitted["watching_memory_bytes"] - (4 << 30) < 7 * 4 * refitted["bytes_before"]
    out, _ = run("simplify", toy, "--tau", 1, "--output", "smaller", "--dry-run")
    assert "dry run: nothing was written" in out
    assert "-> as scores decide" in out
    assert "scoring      about 1 s (an estimate, from one pair timed on this machine)" in out


def test_a_dry_run_of_prune_has_the_sizes_of_what_prune_writes(run: Callable[..., tuple[str, str]]) -> None:
    toy = make_toy(Path("toy"))
    moeits.plan(moeits.score(toy), tau=0.5).save("plan.json")
    asked = ("prune", toy, "--plan", "plan.json", "--layout", "uniform", "--output", "smaller")
    rehearsed = json.loads(run(*asked, "--dry-run", "--json")[0])
    assert not Path("smaller").exists()
    run(*asked)
    written = moeits.Checkpoint.open("smaller")
    assert rehearsed["bytes_after"] == written.nbytes
    assert rehearsed["scoring_seconds"] is None


def test_the_estimate_of_a_scoring_grows_with_pairs_and_shrinks_with_threads(tmp_path: Path) -> None:
    from moeits.engines.threads import Threads
    from moeits.experts.layout import MoELayout
    from moeits.scoring.estimate import estimate
    from moeits.scoring.layers import LayerScorer
    from moeits.signals.settings import Scoring

    checkpoint = moeits.Checkpoint.open(make_toy(tmp_path / "toy"))
    layout = MoELayout.of(checkpoint)
    projections = tuple(layout.architecture.projection_names)
    signal = Scoring().redundancy().for_model(projections, layout.architecture.model_type)
    seconds = {}
    for threads, layers in ((1, dict(layout.layers)), (8, dict(layout.layers)), (1, {0: layout.layers[0]})):
        with Threads(threads) as engine:
            fewer = replace(layout, layers=layers)
            scorer = LayerScorer(checkpoint=checkpoint, layout=fewer, engine=engine, memory_bytes=2**30)
            seconds[threads, len(layers)] = min(estimate(scorer, signal).seconds for _ in range(9))
    # Timings on a busy machine: only what differs by several times is told apart.
    assert seconds[8, len(layout.layers)] < seconds[1, len(layout.layers)]
    assert seconds[1, 1] < seconds[1, len(layout.layers)]
