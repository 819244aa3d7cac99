"""A sweep is the plans of its taus, and never does anything twice."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.planner import Planner
from moeits.choosing.settings import Choice
from moeits.console.sweeps import show_sweep
from moeits.errors import MoeitsError, OutputError, SettingError
from moeits.evidence import Evidence
from moeits.stages.sweep import Sweep, parse_taus
from tests.evaluation_toys import give_tokenizer
from tests.runs import evaluated, swept
from tests.toys import make_toy


def test_each_point_is_the_plan_of_its_tau(toy: Path, tmp_path: Path) -> None:
    run = moeits.sweep(toy, tau="-1:2:0.5", output=tmp_path / "run")
    evidence = moeits.score(toy)
    assert [point.tau for point in run.points] == [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    for point in run.points:
        plan = moeits.plan(evidence, tau=point.tau)
        assert point.kept == {layer: len(kept) for layer, kept in plan.kept.items()}
        assert point.summary == plan.summary
        assert moeits.PruningPlan.load(tmp_path / "run" / point.folder / "plan.json").kept == plan.kept
    assert len({point.summary["experts_kept"] for point in run.points}) > 2, "a sweep that shows nothing"


def test_the_file_holds_what_the_function_returns(toy: Path, tmp_path: Path) -> None:
    run = moeits.sweep(toy, tau="0,1", output=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "sweep.json").read_text()) == json.loads(json.dumps(run.facts()))


def test_the_same_sweep_gives_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        moeits.sweep(toy, tau="0,1", output=tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    files.remove(Path("ledger.json"))  # the run's own log, with its seconds
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_finer_grid_goes_on_from_the_evidence_of_a_coarser_one(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moeits.sweep(toy, tau="0:1:1", output=tmp_path / "run")
    monkeypatch.setattr(sys.modules["moeits.stages.sweep"], "score", lambda *_, **__: pytest.fail("scored twice"))
    assert len(moeits.sweep(toy, tau="0:1:0.25", output=tmp_path / "run").points) == 5


def test_a_folder_of_another_checkpoint_or_other_settings_is_refused(toy: Path, tmp_path: Path) -> None:
    moeits.sweep(toy, tau="0,1", output=tmp_path / "run")
    other = make_toy(tmp_path / "other", seed=1)
    with pytest.raises(SettingError, match=r"another checkpoint \(toy\).*--fresh"):
        moeits.sweep(other, tau="0,1", output=tmp_path / "run")
    with pytest.raises(SettingError, match=r"scoring was .*\"bins\": \"auto\".*--fresh"):
        moeits.sweep(toy, tau="0,1", bins=9, output=tmp_path / "run")
    assert moeits.sweep(other, tau="0,1", output=tmp_path / "run", fresh=True).source == "other"


def test_a_checkpoint_is_no_place_for_a_sweep(toy: Path) -> None:
    with pytest.raises(OutputError, match="is a checkpoint"):
        moeits.sweep(toy, tau="1", output=toy)


@given(st.integers(-200, 200), st.integers(0, 40), st.integers(1, 50))
def test_a_range_of_taus_has_both_its_ends(first: int, steps: int, step: int) -> None:
    taus = parse_taus(f"{first / 100}:{(first + steps * step) / 100}:{step / 100}")
    assert len(taus) == steps + 1
    assert (taus[0], taus[-1]) == (first / 100, (first + steps * step) / 100)


@pytest.mark.parametrize("text", ["", "1:0:1", "0:1:0", "0:1", "a,b", "0:1:-1", "nan", "0:inf:1", "0:1:1e-9"])
def test_taus_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"write FIRST:LAST:STEP"):
        parse_taus(text)


def _folder(model: Path | Checkpoint) -> Path:
    return model.folder if isinstance(model, Checkpoint) else model


class Stages:
    """Stand-ins of evaluate, heal and measure, which write what the real ones write and remember whom they met."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self.stop_before: tuple[str, str] | None = None
        points = sys.modules["moeits.sweeping.points"]
        for stage in (self.evaluate, self.heal, self.measure, self.check_healing):
            monkeypatch.setattr(points, stage.__name__, stage)

    def _begin(self, stage: str, output: Path) -> None:
        depth = 3 if output.parent.name.startswith("random-") else 2
        step = (stage, "/".join(output.parts[-depth:]))
        if step == self.stop_before:
            raise KeyboardInterrupt
        self.done.append(step)

    def evaluate(self, model: Path | Checkpoint, *, output: Path, **arguments: Any) -> None:
        assert (_folder(model) / "config.json").exists()
        assert (arguments["tasks"], arguments["num_fewshot"]) == ("continuation", 15)
        self._begin("evaluate", output)
        output.write_text("{}")

    def heal(self, model: Path | Checkpoint, *, output: Path, resume: bool, data: str, recipe: str, **_: Any) -> None:
        assert (data, recipe, resume) == ("data.jsonl", "small", False)
        self._begin("heal", output)
        shutil.copytree(_folder(model), output)
        (output / "healing.json").write_text('{"format": 1, "recipe_name": "small", "fingerprint": "x"}')

    def check_healing(self, checkpoint: Checkpoint, *, data: str, recipe: str) -> None:
        assert checkpoint.tensors
        assert (data, recipe) == ("data.jsonl", "small")

    def measure(self, model: Path | Checkpoint, *, output: Path, **_: Any) -> None:
        assert (_folder(model) / "config.json").exists()
        self._begin("measure", output)
        output.write_text("{}")


def full_sweep(toy: Path, run: Path, tau: str = "0,1,9", **changes: Any) -> Sweep:
    asked = {"evaluate": "continuation", "heal": "data.jsonl", "recipe": "small", "measure": True, "control": 2}
    return moeits.sweep(toy, tau=tau, output=run, **{**asked, **changes})


def test_every_point_is_evaluated_before_and_after_healing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    run = full_sweep(toy, tmp_path / "run")
    folders = list(dict.fromkeys(point.folder for point in run.points))
    assert len(folders) == 3
    assert folders[-1] == "unpruned", "at tau 9 everything stays"
    healed = {"plan.json", "unhealed.json", "healing.json", "healed.json"}
    for folder in folders:
        controls = set() if folder == "unpruned" else {"random-0", "random-1"}
        parts = {path.name for path in (tmp_path / "run" / folder).iterdir()}
        assert parts == healed | {"footprint.json"} | controls
        for control in controls:
            parts = {path.name for path in (tmp_path / "run" / folder / control).iterdir()}
            assert parts == (healed if control == "random-0" else {"plan.json", "unhealed.json"})
    # Four files at each of three points, four at the two random choices of each of two.
    assert len(stages.done) == len(set(stages.done)) == 4 * 3 + 4 * 2


def ledger(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "ledger.json").read_text())["entries"]


def test_the_control_keeps_as_many_experts_in_each_layer_chosen_by_its_seed(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(monkeypatch)
    full_sweep(toy, tmp_path / "run", "0,1")
    for point in (tmp_path / "run").glob("experts-*"):
        plans = [moeits.PruningPlan.load(path / "plan.json") for path in (point, *sorted(point.glob("random-*")))]
        assert [(plan.criterion, plan.settings.get("seed")) for plan in plans] == [
            ("moeits", None),
            ("random", 0),
            ("random", 1),
        ]
        assert len({tuple(map(len, plan.kept.values())) for plan in plans}) == 1
        assert len({tuple(plan.kept.items()) for plan in plans}) == 3, "the seeds chose the same experts"


def test_what_the_control_costs_is_not_charged_to_the_product(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(monkeypatch)
    full_sweep(toy, tmp_path / "run")
    full_sweep(toy, tmp_path / "without", control=0)
    entries, without = ledger(tmp_path / "run"), ledger(tmp_path / "without")
    controls = [entry for entry in entries if entry["stage"].startswith("control: ")]
    product = [(entry["stage"], entry["point"]) for entry in entries if entry not in controls]
    assert product == [(entry["stage"], entry["point"]) for entry in without]
    assert sorted({entry["point"].split("/")[1] for entry in controls}) == ["random-0", "random-1"]
    assert [entry["stage"] for entry in controls].count("control: healing") == 2, "seed 0 at each of two points"


def test_more_seeds_later_add_their_own_files_only(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(monkeypatch)
    full_sweep(toy, tmp_path / "run", "0", control=1)
    stages.done.clear()
    full_sweep(toy, tmp_path / "run", "0", control=3)
    assert stages.done == [("evaluate", f"experts-7/random-{seed}/unhealed.json") for seed in (1, 2)]
    full_sweep(toy, tmp_path / "run", "0", control=0)
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["settings"]["control"] == 3


@pytest.mark.parametrize(
    ("control", "sentence"), [(1, "--control in a sweep needs --evaluate"), (-1, "--control -1 is out of range")]
)
def test_a_control_of_nothing_is_refused(toy: Path, tmp_path: Path, control: int, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        moeits.sweep(toy, tau="1", output=tmp_path / "run", control=control)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"perplexity": "nowhere.txt"}, "There is no text nowhere.txt"),
        ({"evaluate": "boolq", "num_fewshot": -1}, "--num-fewshot -1 is out of range"),
        ({"evaluate": "boolq", "batch_size": 0}, "--batch-size 0 is out of range"),
        ({"evaluate": "boolq", "dtype": "float23"}, "no dtype 'float23'"),
        ({"evaluate": "boolq", "heal": "nowhere.jsonl"}, "has no tokenizer"),
        ({"measure": True, "country": "Spain"}, "ISO code of three letters"),
    ],
)
def test_what_is_wrong_with_the_work_at_the_points_is_said_before_anything_is_scored(
    toy: Path, tmp_path: Path, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(MoeitsError, match=sentence):
        moeits.sweep(toy, tau="1", output=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_a_footprint_asked_for_later_heals_nothing_again(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    full_sweep(toy, tmp_path / "run", "0", measure=False, control=0)
    stages.done.clear()
    full_sweep(toy, tmp_path / "run", "0", control=0)
    assert [stage for stage, _ in stages.done] == ["measure", "measure"], "of the unpruned model and of the point"


def test_footprints_of_one_run_are_all_measured_in_the_same_way(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(monkeypatch)
    moeits.sweep(toy, tau="0", output=tmp_path / "run", measure=True, dtype="float32")
    with pytest.raises(SettingError, match=r"measuring was .*\"dtype\": \"float32\".*--fresh"):
        moeits.sweep(toy, tau="0,1", output=tmp_path / "run", measure=True, dtype="bfloat16")


def test_other_data_of_the_same_name_are_other_data(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stages(monkeypatch)
    for name in ("one", "two", "copy"):
        folder = tmp_path / name / "data"
        (folder / "continuation").mkdir(parents=True)
        (folder / "continuation" / "test.jsonl").write_text("two" if name == "two" else "one")
        (folder / "text.jsonl").write_text('{"text": "one"}')

    def evaluated(name: str, text: str) -> Sweep:
        data = tmp_path / name / "data"
        asked = {"evaluate": "continuation", "data_dir": data, "perplexity": tmp_path / text / "data" / "text.jsonl"}
        return moeits.sweep(toy, tau="0", output=tmp_path / "run", **asked)

    evaluated("one", "one")
    evaluated("copy", "copy")
    for name, text in (("two", "one"), ("one", "two")):
        (tmp_path / "two" / "data" / "text.jsonl").write_text('{"text": "two"}')
        with pytest.raises(SettingError, match=r"evaluation was .*\"sha256\""):
            evaluated(name, text)
    assert str(tmp_path) not in (tmp_path / "run" / "sweep.json").read_text()


def test_taus_are_added_to_those_that_the_folder_has(toy: Path, tmp_path: Path) -> None:
    moeits.sweep(toy, tau="0,1", output=tmp_path / "run")
    again = moeits.sweep(toy, tau="0.5,1", output=tmp_path / "run")
    assert [point.tau for point in again.points] == [0, 0.5, 1]
    assert json.loads((tmp_path / "run" / "sweep.json").read_text()) == json.loads(json.dumps(again.facts()))


def test_a_stopped_sweep_goes_on_and_repeats_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Stages(monkeypatch)
    full_sweep(toy, tmp_path / "whole", "0,9", control=1)
    for number, step in enumerate(whole.done):
        stages, run = Stages(monkeypatch), tmp_path / f"run-{number}"
        stages.stop_before = step
        with pytest.raises(KeyboardInterrupt):
            full_sweep(toy, run, "0,9", control=1)
        stages.stop_before = None
        full_sweep(toy, run, "0,9", control=1)
        assert sorted(stages.done) == sorted(whole.done)


def test_a_finished_sweep_does_nothing_and_another_tau_adds_its_own_point(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    full_sweep(toy, tmp_path / "run", "1")
    stages.done.clear()
    full_sweep(toy, tmp_path / "run", "1")
    assert not stages.done
    moeits.sweep(toy, tau="1", output=tmp_path / "run")
    with pytest.raises(SettingError, match="evaluation was"):
        moeits.sweep(toy, tau="1", output=tmp_path / "run", evaluate="boolq")
    full_sweep(toy, tmp_path / "run", "0,1")
    assert len({name.split("/")[0] for _, name in stages.done if "random" not in name}) == 1


def test_healing_without_evaluation_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="what should it show"):
        moeits.sweep(toy, tau="1", output=tmp_path / "run", heal="data.jsonl")


@pytest.mark.slow
def test_a_real_sweep_evaluates_heals_and_reports(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "text" / "train.jsonl").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    moeits.sweep(
        shared / "models" / "moe-tiny-qwen2moe",
        tau="1",
        output=tmp_path / "run",
        evaluate="continuation",
        data_dir=shared / "data",
        num_fewshot=0,
        limit=4,
        dtype="float32",
        heal=tmp_path / "text.jsonl",
        recipe="small",
        steps=2,
    )
    moeits.report(tmp_path / "run", output=tmp_path / "report.md", format="md")
    text = (tmp_path / "report.md").read_text()
    assert "| MoEITS 46, healed |" in text
    assert "continuation_local: 0-shot, 4 of 400 items" in text


def test_a_sweep_walks_the_taus_of_another_criterion(toy: Path, tmp_path: Path) -> None:
    swept = moeits.sweep(toy, output=tmp_path / "run", tau="0,1", criterion="aimer")
    planned = moeits.plan(Evidence.load(tmp_path / "run/evidence.safetensors"), criterion="aimer", tau=0)
    assert swept.points[0].kept == planned.counts
    with pytest.raises(SettingError, match='criterion was "aimer"'):
        moeits.sweep(toy, output=tmp_path / "run", tau="0,1")


@pytest.mark.parametrize("asked", [{"tau": "1e400"}, {"criterion": "random"}, {"criterion": "reap", "tokens": 3}])
def test_what_a_sweep_cannot_walk_is_said_before_anything_is_scored(
    toy: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(SettingError):
        moeits.sweep(toy, output=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("criterion", ["mop", "c-gnn", "moe-i2-genetic"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_who_chooses_a_set_for_each_count_is_not_taken_for_a_random_choice(
    toy: Path, tmp_path: Path, criterion: str, dry_run: bool
) -> None:
    with pytest.raises(SettingError, match="chooses a set of experts for each count") as found:
        moeits.sweep(toy, output=tmp_path / "run", criterion=criterion, dry_run=dry_run)
    assert "--control" not in str(found.value)
    assert not (tmp_path / "run").exists()


def test_what_was_measured_is_printed_beside_chance(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluated(swept(toy, tmp_path / "run", tau="0,1"), seeds=3)
    walked = moeits.sweep(toy, tau="0,1", output=run)
    show_sweep(walked, {"output": run})
    sizes, accuracy, loss = re.split(r"\n\n.*:\n", capsys.readouterr().out.partition("\nwritten")[0])
    assert [line.split()[0] for line in sizes.splitlines()] == ["tau", "0", "1"]
    assert [line.split()[0] for line in accuracy.splitlines()] == ["tau", "unpruned", "0", "1"]
    for point, line in zip(walked.points, loss.splitlines()[2:], strict=True):
        folders = [run / point.folder, *(run / point.folder).glob("random-*")]
        nats = [
            json.loads((folder / "unhealed.json").read_text())["perplexity"]["nats_per_token"] for folder in folders
        ]
        healed = json.loads((run / point.folder / "healed.json").read_text())["perplexity"]["nats_per_token"]
        mean = sum(nats[1:]) / 3
        chance = f"{mean:.3f} ({min(nats[1:]):.3f} to {max(nats[1:]):.3f})"
        expected = f"{point.tau:g} {nats[0]:.3f} {chance} {nats[0] - mean:+.3f} {healed:.3f}"
        assert " ".join(line.split()) == expected


def test_without_measurements_only_sizes_are_printed(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_sweep(moeits.sweep(toy, tau="0,1", output=tmp_path / "run"), {"output": tmp_path / "run"})
    said = capsys.readouterr().out
    assert "random choices" not in said
    assert f"moeits report {tmp_path / 'run'}" in said


@pytest.mark.parametrize("criterion", ["aimer", "router-cosine", "chance-corrected", "reap"])
def test_any_criterion_with_scores_goes_through_sweep_page_and_dial(tmp_path: Path, criterion: str) -> None:
    toy = make_toy(tmp_path / "toy", layers=2)
    give_tokenizer(toy)
    run = swept(toy, tmp_path / "run", tau="0,0.5,1", criterion=criterion, tokens=256)
    evaluated(run, seeds=1)
    page = tmp_path / "report.html"
    moeits.report(run, output=page)
    text = page.read_text(encoding="utf-8")
    summary = re.sub(r"<[^>]*>", "", text.split("Summary</h2>")[1].split("Who stays</h2>")[0])
    assert f"pruned by {criterion}" in summary
    assert re.search(rf"{criterion} is (better|worse) than", summary)
    assert "MoEITS" not in summary
    orders = Planner(Evidence.load(run / "evidence.safetensors"), Choice(criterion=criterion)).orders
    dial = json.loads(text.split('class="data">')[1].split("</script>")[0])
    assert [layer["removed"] for layer in dial["layers"]] == [list(order.removed) for order in orders.values()]
    assert dial["measured"], "the dial finds the plans that were evaluated"


def test_a_watching_criterion_watches_once_and_on_what_was_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    toy = make_toy(tmp_path / "toy", layers=2)
    give_tokenizer(toy)
    moeits.sweep(toy, output=tmp_path / "run", tau="0,1", criterion="reap", tokens=256)
    assert [entry["stage"] for entry in ledger(tmp_path / "run")] == ["calibration"]
    moeits.sweep(toy, output=tmp_path / "run", tau="0.5", criterion="reap", tokens=256)
    assert [entry["stage"] for entry in ledger(tmp_path / "run")] == ["calibration"], "not a second time"
    with pytest.raises(SettingError, match=r"scoring was .*\"tokens\": 256"):
        moeits.sweep(toy, output=tmp_path / "run", tau="0.5", criterion="reap", tokens=512)
