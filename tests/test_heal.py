"""Healing from file to file: its options, its other layouts, and one sentence for every bad input."""

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, HealingError, MissingExtra, MoeitsError, OutputError, SettingError
from moeits.experts.layout import MoELayout
from moeits.healing.merging import merged_tensors
from moeits.healing.targets import targets_of, without_attention
from tests.healing_toys import conversations, make_pruned, texts, write_rows, write_tokenizer
from tests.toys import fuse, make_toy, read_config, read_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {"recipe": "small", "rank": 4, "batch_size": 4, "steps": 2, "sequence_length": 16, "learning_rate": 1e-2}


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    return make_pruned(tmp_path, layers=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data.jsonl", texts())


def tensors_of(pruned: Path, data: Path, output: Path, **settings) -> dict[str, np.ndarray]:
    moeits.heal(pruned, data=data, output=output, **{**TINY, **settings})
    return read_tensors(output)


def test_the_same_inputs_give_the_same_bytes(pruned: Path, data: Path, tmp_path: Path):
    one, two, other = (
        tensors_of(pruned, data, tmp_path / f"out{at}", seed=seed, dropout=0.1) for at, seed in enumerate((0, 0, 1))
    )
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)


def test_gradient_checkpointing_changes_no_result(pruned: Path, data: Path, tmp_path: Path):
    plain, saving = (
        tensors_of(pruned, data, tmp_path / f"out{flag}", dropout=0.1, gradient_checkpointing=flag)
        for flag in (False, True)
    )
    # The same numbers, computed twice; the random state of dropout is restored for the second time.
    assert all(np.allclose(plain[name], saving[name], atol=1e-6) for name in plain)


def test_merging_holds_one_expert_of_a_fused_tensor_at_a_time(tmp_path: Path):
    experts, rank = 32, 2
    toy = make_toy(tmp_path / "toy", "mixtral", experts=experts, layers=1, hidden_size=128, intermediate_size=256)
    checkpoint = Checkpoint.open(fuse(toy, tmp_path / "fused"))
    moe = MoELayout.of(checkpoint)
    targets = targets_of(checkpoint, moe, ("experts",))
    factors = {
        f"{target.module}.factors.{weight}.{side}": np.zeros((count, *shape), np.float32)
        for target in targets
        for weight, (count, rows, columns) in target.weights.items()
        for side, shape in (("a", (rank, columns)), ("b", (rows, rank)))
    }
    tensors = merged_tensors(checkpoint, moe, targets, factors, 1.0)
    largest = max(tensors, key=lambda tensor: tensor.nbytes)
    assert len(largest.parts) == experts
    tracemalloc.start()
    try:
        merged = hashlib.sha256()
        for part in largest.parts:
            merged.update(part())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert merged.digest() == hashlib.sha256(checkpoint.read(largest.name).tobytes()).digest()
    assert peak < 4 * np.prod(largest.shape) / 4, "bytes in float32, of a quarter of the tensor"


@pytest.mark.parametrize(
    ("family", "reached"), [("qwen3_next", 2), ("jamba", 2), ("lfm2_moe", 2), ("qwen2_moe", 4), ("minimax", 4)]
)
def test_layers_that_mix_tokens_by_something_else_than_attention_are_counted(
    tmp_path: Path, family: str, reached: int
) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", family, layers=4))
    notes = without_attention(checkpoint, ("attention",))
    assert notes == [] if reached == 4 else f"reaches {reached} of 4 layers" in notes[0]
    assert without_attention(checkpoint, ("router",)) == []


def test_a_healing_says_which_layers_its_targets_did_not_reach(data: Path, tmp_path: Path) -> None:
    toy = make_pruned(tmp_path, "lfm2_moe", layers=4)
    healing = moeits.heal(toy, data=data, output=tmp_path / "healed", **{**TINY, "targets": "attention"})
    (note,) = [note for note in healing.notes if "--targets attention" in note]
    assert note in json.loads((tmp_path / "healed" / "healing.json").read_text())["notes"]
    assert note in (tmp_path / "healed" / "README.md").read_text()


def test_fused_experts_are_healed_like_single_ones(data: Path, tmp_path: Path):
    single = make_toy(tmp_path / "single", dtype="float32", layers=2)
    fused = fuse(single, tmp_path / "fused")
    for folder in (single, fused):
        write_tokenizer(folder)
    one, other = (tensors_of(folder, data, tmp_path / f"{folder.name}-healed") for folder in (single, fused))
    down = np.stack([one[f"model.layers.1.mlp.experts.{e}.down_proj.weight"] for e in range(6)])
    assert np.array_equal(other["model.layers.1.mlp.experts.down_proj"], down)
    up = one["model.layers.0.mlp.experts.3.up_proj.weight"]
    assert np.array_equal(other["model.layers.0.mlp.experts.gate_up_proj"][3, len(up) :], up)


def test_a_bfloat16_checkpoint_stays_one_and_is_rounded_once(data: Path, tmp_path: Path):
    pruned = make_pruned(tmp_path, layers=2, dtype="bfloat16")
    healing = moeits.heal(pruned, data=data, output=tmp_path / "out", **TINY)
    assert {value.dtype for value in read_tensors(tmp_path / "out").values()} == {
        value.dtype for value in read_tensors(pruned).values()
    }
    # bfloat16 keeps 8 bits of a weight, so the loss moves in the third digit.
    assert healing.loss_merged == pytest.approx(healing.loss_after, abs=2e-2)


def divergence_from(teacher: Path, student: Path) -> float:
    """Mean KL(teacher || student) over the tokens of the texts, in nats: what distillation promises to lower."""
    ids = transformers.AutoTokenizer.from_pretrained(teacher)([row["text"] for row in texts()], return_tensors="pt")
    with torch.inference_mode():
        theirs, ours = (
            moeits.load(folder, dtype="float32")(ids.input_ids).logits.log_softmax(-1) for folder in (teacher, student)
        )
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_distillation_moves_towards_the_teacher(pruned: Path, data: Path, tmp_path: Path):
    """Also where the text says something else: training on the text itself moves away from this untrained teacher."""
    settings = {**TINY, "steps": 20, "rank": 8}
    moeits.heal(pruned, data=data, output=tmp_path / "plain", **settings)
    distillation = {"objective": "distillation", "teacher": tmp_path / "toy"}
    moeits.heal(pruned, data=data, output=tmp_path / "distilled", **settings, **distillation)
    before, plain, distilled = (
        divergence_from(tmp_path / "toy", folder) for folder in (pruned, tmp_path / "plain", tmp_path / "distilled")
    )
    assert distilled < 0.85 * before, "a fifth of it goes in twenty steps"
    assert plain > 2 * before, "and not because any training would do"


def test_balance_trains_the_routers(pruned: Path, data: Path, tmp_path: Path):
    plain = tensors_of(pruned, data, tmp_path / "plain", targets="router")
    balanced = tensors_of(pruned, data, tmp_path / "balanced", targets="router", balance=1.0)
    changed = {name for name in plain if plain[name].tobytes() != balanced[name].tobytes()}
    assert changed == {"model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"}


def test_the_authors_recipe_also_trains_attention_and_shared_experts(pruned: Path, data: Path, tmp_path: Path):
    settings = {**TINY, "recipe": "authors-code", "accumulation": 1}
    moeits.heal(pruned, data=data, output=tmp_path / "out", **settings)
    before, after = read_tensors(pruned), read_tensors(tmp_path / "out")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    kinds = ("self_attn.", "mlp.experts.", "mlp.gate.", "shared_expert.")
    assert changed == {n for n in before if any(kind in n for kind in kinds) and n.endswith("weight")}


def test_the_papers_recipe_starts_trains_and_resumes(pruned: Path, tmp_path: Path):
    data = write_rows(tmp_path / "talk.jsonl", conversations())
    settings = {"data": data, "output": tmp_path / "out", "steps": 4, "evaluate_every": 2, "holdout": 0.1}

    def stop(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if what == "healing" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moeits.heal(pruned, progress=stop, **settings)
    healing = moeits.heal(pruned, resume=True, **settings)
    assert healing.recipe_name == "paper"
    assert (healing.recipe.rank, healing.recipe.batch_size, healing.recipe.accumulation) == (64, 16, 4)
    assert healing.notes == ("Sequences have 64 tokens, the model's context, instead of the recipe's 2048.",)
    assert [row["step"] for row in healing.curves["held_out"]] == [2, 4]


def test_of_a_hub_data_set_no_more_is_read_than_the_steps_can_use(pruned: Path, tmp_path: Path, monkeypatch):
    """Not the live hub: a data set without an end stands for one."""
    datasets = pytest.importorskip("datasets")
    from moeits.healing import conversations as reading

    def endless():
        while True:
            yield from texts()

    monkeypatch.setattr(reading, "_SHUFFLE_WINDOW", 10)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(endless))
    for packing in (False, True):
        out = tmp_path / f"out{packing}"
        found = moeits.heal(pruned, data="org/name", output=out, holdout=0.5, packing=packing, **TINY).data
        assert found["sequences"] == TINY["steps"] * TINY["batch_size"]
        # A text is 13 of the 16 tokens of a sequence; half of them are held out.
        assert found["rows"] == (20 if packing else 16)
    apart = moeits.heal(pruned, data="org/name", valid="org/other", output=tmp_path / "apart", **TINY).data
    assert (apart["rows"], apart["held_out"]) == (10, 0)


def test_an_unpruned_model_can_be_healed_the_same_way(data: Path, tmp_path: Path):
    toy = make_toy(tmp_path / "toy", dtype="float32", layers=2)
    write_tokenizer(toy)
    healing = moeits.heal(toy, data=data, output=tmp_path / "out", **TINY)
    assert healing.loss_after < healing.loss_before
    assert read_config(tmp_path / "out") == read_config(toy)


def test_simplify_heals_what_it_pruned_and_leaves_one_checkpoint(data: Path, tmp_path: Path, monkeypatch):
    from moeits.healing import recipe

    monkeypatch.setattr(
        recipe, "RECIPES", {"small": recipe.HealingRecipe(**{k: v for k, v in TINY.items() if k != "recipe"})}
    )
    toy = make_toy(tmp_path / "toy", dtype="float32", layers=2)
    write_tokenizer(toy)
    plan = moeits.simplify(toy, tau=0.2, output=tmp_path / "out", heal=data, recipe="small")
    assert (tmp_path / "out" / "healing.json").exists()
    assert (tmp_path / "out" / "plan.json").read_text() == plan.to_json()
    assert {path.name for path in tmp_path.iterdir()} == {"toy", "data.jsonl", "out"}
    with pytest.raises(HealingError, match="is not a file"):
        moeits.simplify(toy, tau=0.2, output=tmp_path / "other", heal="nowhere.jsonl", recipe="small")
    assert not list(tmp_path.glob("other*"))


def test_the_command_shows_counts_and_losses(pruned: Path, data: Path, tmp_path: Path, capsys, monkeypatch):
    import sys

    from moeits.command_line.app import main

    flags = ["--rank", "4", "--batch-size", "4", "--steps", "2", "--sequence-length", "16", "--no-packing"]
    arguments = ["heal", str(pruned), "--data", str(data), "--output", str(tmp_path / "out"), "--recipe", "small"]
    monkeypatch.setattr(sys, "argv", ["moeits", *arguments, *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    shown, noise = capsys.readouterr()
    assert ended.value.code == 0
    assert "24 rows: 8 used, 1 held out, 0 dropped, 15 not needed, 0 cut" in shown
    assert "merged" in shown
    assert noise == ""


def test_healing_leaves_the_bars_and_the_loggers_of_its_libraries_as_they_were(
    pruned: Path, data: Path, tmp_path: Path
):
    import logging

    bars, logger = transformers.utils.logging, logging.getLogger("transformers")
    before = bars.is_progress_bar_enabled(), logger.level
    moeits.heal(pruned, data=data, output=tmp_path / "out", **TINY)
    assert (bars.is_progress_bar_enabled(), logger.level) == before


def test_the_energy_of_a_training_is_measured_when_it_is_asked_for(pruned: Path, data: Path, tmp_path: Path):
    pytest.importorskip("codecarbon")
    unasked = moeits.heal(pruned, data=data, output=tmp_path / "without", **TINY).energy
    assert (unasked["joules"], unasked["why_not"]) == (None, "Energy was not asked for.")
    asked = moeits.heal(pruned, data=data, output=tmp_path / "with", energy=True, country="esp", **TINY).energy
    assert asked["joules"] > 0, asked["why_not"]
    assert asked["co2_grams"] > 0
    card = (tmp_path / "with" / "README.md").read_text()
    assert f"({asked['mode']})" in card
    assert "in ESP" in card


def test_the_card_says_what_was_trained_and_denies_no_measured_loss(pruned: Path, data: Path, tmp_path: Path):
    """Whatever the pruned checkpoint's own README holds, the card is made from facts."""
    (pruned / "README.md").write_bytes(b"mod\xe8le: nothing was trained\n")
    healing = moeits.heal(pruned, data=data, output=tmp_path / "out", **TINY)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "healed by a short LoRA training" in card
    assert f"| merged | {healing.loss_merged:.4f} |" in card
    for denied in ("How much the model lost.", "nothing was trained", "the whole recipe"):
        assert denied not in card


def test_room_for_the_result_is_looked_for_before_the_training(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from moeits.checkpoint import writing

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    told: list[str] = []
    with pytest.raises(OutputError, match="free, the checkpoint needs"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", progress=lambda what, *_: told.append(what), **TINY)
    assert told == []
    assert not (tmp_path / "out.healing").exists()


# ------------------------------------------------------------------------------------------------------- bad input


def refuse(
    match: str, pruned: Path, data: Path | str, output: Path, error: type[MoeitsError] = HealingError, **settings
):
    with pytest.raises(error, match=match):
        moeits.heal(pruned, data=data, output=output, **{**TINY, **settings})
    assert not output.exists()
    assert not output.with_name(output.name + ".healing").exists()


def test_bad_data_is_one_sentence(pruned: Path, tmp_path: Path):
    out = tmp_path / "out"
    refuse("--data has no rows", pruned, write_rows(tmp_path / "a.jsonl", []), out)
    rows = write_rows(tmp_path / "b.jsonl", [{"instruction": "w1", "output": ""}] * 3)
    refuse("None of the 3 rows of --data has an answer", pruned, rows, out)


def test_a_tokenizer_without_an_end_of_sequence_is_one_sentence(pruned: Path, data: Path, tmp_path: Path):
    write_tokenizer(pruned, eos=False)
    refuse("no end-of-sequence token", pruned, data, tmp_path / "out")


def test_a_checkpoint_without_a_tokenizer_is_one_sentence(data: Path, tmp_path: Path):
    refuse("has no tokenizer", make_toy(tmp_path / "toy"), data, tmp_path / "out", CheckpointError)


def test_settings_that_make_no_sense_are_one_sentence(pruned: Path, data: Path, tmp_path: Path):
    out = tmp_path / "out"
    refuse("longer than the model's context of 64", pruned, data, out, SettingError, sequence_length=65)
    refuse("--targets gates is not one of router", pruned, data, out, SettingError, targets="gates")
    refuse("--recipe fast is not one of paper", pruned, data, out, SettingError, recipe="fast")
    refuse("--rank 0 is out of range", pruned, data, out, SettingError, rank=0)
    refuse("need each other", pruned, data, out, SettingError, objective="distillation")
    refuse("--holdout 1 is out of range", pruned, data, out, SettingError, holdout=1.0)
    refuse("--template chat needs a chat template", pruned, data, out, template="chat")
    refuse("no dtype 'foo' here. Known: auto, float32, bfloat16", pruned, data, out, SettingError, dtype="foo")
    refuse("--country Spain is not a country", pruned, data, out, SettingError, country="Spain")
    refuse("--seed -1 is out of range", pruned, data, out, SettingError, seed=-1)
    refuse("--evaluate-every 0 is out of range", pruned, data, out, SettingError, evaluate_every=0)
    refuse("--save-every -3 is out of range", pruned, data, out, SettingError, save_every=-3)
    refuse("--report-to nonsense is not one of .*wandb", pruned, data, out, SettingError, report_to="nonsense")


def test_a_service_to_report_to_that_is_not_installed_is_named(pruned: Path, data: Path, tmp_path: Path, monkeypatch):
    services = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(services, list)
    refuse("needs wandb, which is not installed", pruned, data, tmp_path / "out", MissingExtra, report_to="wandb")


def test_a_model_that_cannot_be_loaded_leaves_no_run_behind(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from moeits.healing import training

    def too_large(*_, **__):
        raise HealingError("no room for the model")

    monkeypatch.setattr(training, "load_checked", too_large)
    refuse("no room", pruned, data, tmp_path / "out")
    monkeypatch.undo()
    moeits.heal(pruned, data=data, output=tmp_path / "out", **TINY)


def test_several_gpus_without_a_launcher_are_one_sentence(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    refuse("2 GPUs are visible.*accelerate launch -m moeits heal", pruned, data, tmp_path / "out")


def test_a_model_split_among_devices_is_one_sentence(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refuse("by FSDP yet", pruned, data, tmp_path / "out")


def test_targets_that_match_nothing_are_one_sentence(data: Path, tmp_path: Path):
    pruned = make_pruned(tmp_path, "mixtral", layers=2)
    refuse("--targets shared_experts matches nothing", pruned, data, tmp_path / "out", targets="experts,shared_experts")


def test_a_quantized_checkpoint_is_one_sentence_that_says_what_to_do(pruned: Path, data: Path, tmp_path: Path):
    config = {**read_config(pruned), "quantization_config": {"quant_method": "fp8"}}
    (pruned / "config.json").write_text(json.dumps(config))
    refuse("is quantized .*moeits prune COPY --plan plan.json", pruned, data, tmp_path / "out")


def test_a_full_disk_is_said_before_training(pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    enough = Checkpoint.open(pruned).nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 * enough, enough, enough))
    refuse("the checkpoints of this training need", pruned, data, tmp_path / "out", OutputError, rank=64)


def test_an_output_that_exists_is_refused_before_training(pruned: Path, data: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        moeits.heal(pruned, data=data, output=tmp_path / "out", **TINY)


def test_a_teacher_of_another_vocabulary_is_one_sentence(pruned: Path, data: Path, tmp_path: Path):
    teacher = make_toy(tmp_path / "teacher", dtype="float32", layers=2)
    config = {**read_config(teacher), "vocab_size": 65}
    (teacher / "config.json").write_text(json.dumps(config))
    refuse("vocabulary", pruned, data, tmp_path / "out", objective="distillation", teacher=teacher)
