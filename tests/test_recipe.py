"""moeits run: one file from a model to a report, checked before anything is read, and replayable."""

import re
from pathlib import Path

import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import MoeitsError, OutputError, SettingError
from moeits.evaluation.results import Results
from moeits.recipes import STEPS, read_recipe
from moeits.stages.run import _STAGES

DEMO = Path(moeits.__file__).parent / "demo" / "demo-qwen2moe"
TEXT = DEMO.parent / "valid.jsonl"


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def of_the_readme() -> str:
    (block,) = re.findall(r"```yaml\n(model: .*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    return block


@pytest.mark.slow
def test_the_readmes_recipe_does_what_its_commands_do_and_goes_on_where_it_was(tmp_path: Path) -> None:
    quick = {
        "MODEL": str(DEMO),
        "RUN": str(tmp_path / "RUN"),
        "bundled": "bundled\n  tokens: 4096\n  window: 128",
        "train.jsonl": str(DEMO.parent / "train.jsonl"),
        "small": "small\n  steps: 1\n  accumulation: 1\n  sequence_length: 32",
        "valid.jsonl": f"{TEXT}\n  limit: 3",
        "report:": "report:\n  format: md",
    }
    text = of_the_readme()
    for word, instead in quick.items():
        assert text.count(word) == 1
        text = text.replace(word, instead)
    recipe = written(tmp_path / "given", text)
    made = moeits.run(recipe)
    run = tmp_path / "RUN"
    assert (made.steps, made.checkpoint) == (STEPS, "healed")
    assert (run / "recipe.yaml").read_bytes() == recipe.read_bytes()
    moeits.simplify(DEMO, reduction=0.5, output=tmp_path / "by-hand")
    assert (
        Checkpoint.open(run / "checkpoints" / "pruned").fingerprint == Checkpoint.open(tmp_path / "by-hand").fingerprint
    )
    by_hand = moeits.evaluate(tmp_path / "by-hand", perplexity=TEXT, limit=3)
    found = Results.load(run / "pruned" / "unhealed.json")
    assert found.perplexity["nats_per_token"] == by_hand.perplexity["nats_per_token"]
    assert {path.parent.name for path in run.glob("*/*healed.json")} == {"unpruned", "pruned", "refitted", "healed"}
    page = (run / "report.md").read_text()
    assert f"{found.perplexity['nats_per_token']:.3f}" in page
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    (run / "report.md").unlink()
    moeits.run(run / "recipe.yaml")
    assert (run / "report.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_every_flag_of_the_steps_can_be_said_or_is_the_runs_own(tmp_path: Path) -> None:
    text = """
model: org/name
simplify: {reduction: 0.5, criterion: random, seed: 3, projection_weights: "gate_proj=1,up_proj=2,down_proj=1"}
refit: {tokens: 4096, also: none}
heal: {data: texts.jsonl, learning_rate: 1, packing: false}
evaluate:
report: true
"""
    read = read_recipe(written(tmp_path, text), _STAGES)
    assert list(read.steps) == list(STEPS)
    assert read.steps["simplify"]["projection_weights"] == {"gate_proj": 1.0, "up_proj": 2.0, "down_proj": 1.0}
    assert (read.model, read.output, read.steps["evaluate"]) == ("org/name", None, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "model: a\nsimplify: {reducton: 0.5}",
            r"simplify in .* has no setting 'reducton'. Did you mean 'reduction'\?",
        ),
        ("model: a\nsimplfy: {}", r"has a key 'simplfy'. Did you mean 'simplify'\?"),
        ("model: a\nmodel: b\nsimplify:", "has 'model' twice"),
        ("model: a\nsimplify: {model: b}", "names a model for simplify too"),
        ("model: [a, b]\nsimplify:", "should name one model"),
        ("simplify:", "should name one model"),
        ("model: a\nevaluate:", "has no simplify"),
        ("model: a\nsimplify: {tau: many}", "simplify.tau in .* should be a whole number or a number; it is 'many'"),
        ("model: a\nsimplify: {seed: true}", "simplify.seed in .* should be a whole number; it is True"),
        ("model: a\nsimplify: {heal: texts.jsonl}", "is said by a section heal or refit of its own"),
        ("model: a\nsimplify: {overwrite: true}", "cannot have overwrite: the run sets it"),
        ("model: a\nsimplify:\nheal: {steps: 3}", "heal in .* lacks data"),
        ("model: a\nsimplify: {layout: even}", "layout"),
        ("model: a\nsimplify: {layout: padded}\nrefit:", "refit does not take a padded checkpoint"),
        ("model: a\nsimplify: {layout: padded}\nheal: {data: a.jsonl}", "heal does not take a padded checkpoint"),
        ("model: a\nsimplify: 3", "should have the flags of `moeits simplify`"),
        ("- a", "should have keys"),
        ("model: [", "is not YAML"),
        ("model: !!python/object/apply:os.system [ls]\nsimplify:", "is not YAML"),
        ("model: a\nsimplify:", "has no output"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_a_sentence_before_anything_is_read(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(MoeitsError, match=sentence) as error:
        moeits.run(written(tmp_path, text))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_folder_with_another_run_or_anything_else_is_left_alone(tmp_path: Path, toy: Path) -> None:
    text = f"model: {toy}\noutput: {tmp_path / 'RUN'}\nsimplify: {{experts_per_layer: 4}}\n"
    moeits.run(written(tmp_path / "given", text))
    with pytest.raises(OutputError, match="has the run of another recipe"):
        moeits.run(written(tmp_path / "given", text.replace("4", "3")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not the run of a recipe"):
        moeits.run(written(tmp_path / "given", text), output=tmp_path / "mine")
    moeits.run(tmp_path / "RUN" / "recipe.yaml", output=tmp_path / "AGAIN")
    first, again = (
        Checkpoint.open(tmp_path / name / "checkpoints" / "pruned").fingerprint for name in ("RUN", "AGAIN")
    )
    assert first == again


def test_a_missing_recipe_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read as a recipe"):
        moeits.run(tmp_path / "none.yaml")
