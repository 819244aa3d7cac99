"""Evaluation through the real harness: its numbers, local data, what the context cuts, and what goes wrong."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import moeits
from moeits import Results, evaluate
from moeits.command_line.app import main
from moeits.console.results import show_results
from moeits.errors import CheckpointError, EvaluationError, MissingExtra, OutputError, SettingError
from moeits.evaluation.tasks import PAPER, task_names
from tests.evaluation_toys import arc_rows, continuation_rows, make_speaking_toy, write_jsonl
from tests.toys import make_toy

# The queries' lengths in characters. A toy takes 65 with the four of a choice: 61 fits, 62 does not.
QUERIES = [30, 62, 61, 80, 10]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_toy(tmp_path_factory.mktemp("evaluate") / "toy")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five continuations, and ARC with three questions and two examples."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "continuation" / "test.jsonl", continuation_rows(QUERIES))
    write_jsonl(folder / "arc_easy" / "test.jsonl", arc_rows(3))
    write_jsonl(folder / "arc_easy" / "train.jsonl", arc_rows(2))
    return folder


@pytest.fixture(scope="module")
def uneven(shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with another number of experts in each layer."""
    folder = tmp_path_factory.mktemp("uneven") / "qwen2moe"
    plan = moeits.simplify(shared / "models" / "moe-tiny-qwen2moe", output=folder, tau=1.0)
    assert len({len(kept) for kept in plan.kept.values()}) > 1
    return folder


# ------------------------------------------------------------------------------------------------ the numbers


OVERLAY = """
include: {stock}
task: {task}_by_hand
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{train: {data}/{task}/{examples}.jsonl, {split}: {data}/{task}/test.jsonl}}
validation_split: {validation}
"""
# The stock file of each task; which of our files has its examples; the split that is evaluated.
BY_HAND = {
    "boolq": ("super_glue/boolq/default.yaml", "fewshot", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "train", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "train", "test"),
    "winogrande": ("winogrande/default.yaml", "fewshot", "validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "fewshot", "validation"),
}


def overlay_by_hand(folder: Path, data: Path, task: str) -> str:
    """A task file for the harness, of which this project knows nothing."""
    import lm_eval

    stock, examples, split = BY_HAND[task]
    path = folder / f"{task}.yaml"
    path.write_text(
        OVERLAY.format(
            stock=Path(lm_eval.__file__).parent / "tasks" / stock,
            task=task,
            data=data,
            examples=examples,
            split=split,
            validation="validation" if split == "validation" else "null",
        )
    )
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("num_fewshot", [0, 15])
def test_our_numbers_are_those_of_the_harness_called_directly(uneven, shared, tmp_path, num_fewshot):
    """All five tasks of the paper, every sum and every answer."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    asked = {"num_fewshot": num_fewshot, "limit": 3}
    ours = evaluate(uneven, tasks="paper", data_dir=shared / "data", dtype="float32", **asked)
    model, tokenizer = moeits.load(uneven, dtype="float32"), AutoTokenizer.from_pretrained(uneven)
    for task in PAPER:
        direct = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=40),
            tasks=[overlay_by_hand(tmp_path, shared / "data", task)],
            task_manager=TaskManager(include_defaults=False),
            **asked,
        )
        row, theirs = ours.tasks[f"{task}_local"], direct["results"][f"{task}_by_hand"]
        for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
            assert row.get(metric) == theirs.get(f"{metric},none"), (task, metric)
        items = direct["samples"][f"{task}_by_hand"]
        answers = [[answer[0] for answer in item["filtered_resps"]] for item in items]
        for mine, their in zip(ours.samples[f"{task}_local"]["loglikelihoods"], answers, strict=True):
            assert mine == pytest.approx(their, abs=1e-6), task  # kept to six digits


@pytest.mark.slow
@pytest.mark.parametrize("num_fewshot", [0, 15])
def test_the_five_tasks_run_offline_on_a_model_with_per_layer_counts(uneven, shared, num_fewshot):
    found = evaluate(uneven, num_fewshot=num_fewshot, limit=1, data_dir=shared / "data", dtype="float32")
    assert list(found.tasks) == [f"{task}_local" for task in PAPER]
    assert len(set(found.model["experts"].values())) > 1
    for name, row in found.tasks.items():
        assert row["num_fewshot"] == num_fewshot
        assert row["n_samples"]["effective"] == 1
        assert 0 <= row["acc"] <= 1
        assert ("acc_norm" in row) == (name not in ("boolq_local", "winogrande_local"))
        assert len(row["files"]) == 2
    cut = [row["prompts"]["requests_cut"] for row in found.tasks.values()]
    # 15 examples of BoolQ are 3,200 tokens of these models, whose context is 512; one question without examples fits.
    assert found.tasks["boolq_local"]["prompts"]["room_tokens"] == 513
    assert any(cut) == (num_fewshot == 15)


def test_every_item_is_kept_beside_the_sums(toy, data):
    found = evaluate(toy, tasks="continuation,arc_easy", num_fewshot=1, data_dir=data)
    for name, items in (("continuation_local", 5), ("arc_easy_local", 3)):
        row, samples = found.tasks[name], found.samples[name]
        assert row["n_samples"] == {"original": items, "effective": items}
        assert row["acc"] == pytest.approx(sum(samples["acc"]) / items)
        assert row["acc_norm"] == pytest.approx(sum(samples["acc_norm"]) / items)
        assert len(set(samples["doc_hash"])) == items
        best = [max(range(4), key=choices.__getitem__) for choices in samples["loglikelihoods"]]
        assert samples["acc"] == [float(choice == i % 4) for i, choice in enumerate(best)]
        assert row["chance"] == 0.25


def test_cut_prompts_are_counted_one_by_one(toy, data):
    prompts = evaluate(toy, tasks="continuation", data_dir=data).tasks["continuation_local"]["prompts"]
    assert prompts == {
        "requests": 20,
        "requests_cut": 8,
        "items_cut": 2,
        "longest_tokens": 84,
        "room_tokens": 65,
    }


def test_the_continuation_task_never_has_examples(toy, data):
    found = evaluate(toy, tasks="continuation", num_fewshot=15, data_dir=data)
    assert found.tasks["continuation_local"]["num_fewshot"] == 0


def test_results_say_what_they_were_made_with(toy, data):
    from moeits.evaluation.local_data import sha256_of

    found = evaluate(toy, tasks="arc_easy", num_fewshot=2, limit=2, data_dir=data, dtype="float32")
    assert found.model["fingerprint"] == moeits.Checkpoint.open(toy).fingerprint
    assert found.model["experts"] == {"0": 6, "1": 6, "2": 6}
    assert (found.settings["limit"], found.settings["dtype"], found.settings["context_tokens"]) == (2, "float32", 64)
    assert set(found.versions) == {"moeits", "lm_eval", "transformers", "torch", "datasets"}
    hashes = found.tasks["arc_easy_local"]["files"]
    assert hashes == {
        f"arc_easy/{name}.jsonl": sha256_of(data / "arc_easy" / f"{name}.jsonl") for name in ("test", "train")
    }


def test_the_same_inputs_give_the_same_bytes(toy, data, tmp_path):
    for name in ("x.json", "y.json"):
        evaluate(toy, tasks="arc_easy", num_fewshot=1, data_dir=data, output=tmp_path / name)
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / "x.json").read_text()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.json", "y.json"]


def test_a_finished_task_is_not_run_again(toy, data, tmp_path, monkeypatch):
    ran = []

    def run(task, lm, **more):
        ran.append(task.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run_task(task, lm, **more)

    module = sys.modules["moeits.stages.evaluate"]
    run_task = module.run_task
    monkeypatch.setattr(module, "run_task", run)
    asked = {"tasks": "continuation,arc_easy", "num_fewshot": 1, "data_dir": data}
    with pytest.raises(KeyboardInterrupt):
        evaluate(toy, output=tmp_path / "r.json", **asked)
    assert not (tmp_path / "r.json").exists()
    evaluate(toy, output=tmp_path / "r.json", **asked)
    assert ran == ["continuation_local", "arc_easy_local", "arc_easy_local"]
    monkeypatch.undo()
    assert Results.load(tmp_path / "r.json") == evaluate(toy, **asked)


def test_a_copy_of_a_hub_data_set_serves_as_it_is(toy, tmp_path):
    mirror = tmp_path / "allenai" / "ai2_arc"
    for split in ("train", "validation", "test"):
        write_jsonl(mirror / "ARC-Easy" / f"{split}.jsonl", arc_rows(3))
    files = "".join(f"  - split: {s}\n    path: ARC-Easy/{s}.jsonl\n" for s in ("train", "validation", "test"))
    (mirror / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{files}---\n")
    found = evaluate(toy, tasks="arc_easy", num_fewshot=1, data_dir=tmp_path)
    assert found.tasks["arc_easy_local"]["n_samples"]["original"] == 3
    assert sorted(found.tasks["arc_easy_local"]["files"]) == [
        f"allenai/ai2_arc/ARC-Easy/{split}.jsonl" for split in ("test", "train", "validation")
    ]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(toy, data, tmp_path):
    # Without examples: each process draws them from the same seed for its own items only, so others would be drawn.
    asked = ["--tasks", "continuation,arc_easy", "--num-fewshot", "0", "--data-dir", str(data)]
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": "a b c " * i} for i in range(1, 20)])
    asked += ["--perplexity", str(text)]
    # What `accelerate launch` starts on several devices, without its questions about which devices there are.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, "-m", "moeits", "evaluate", str(toy), *asked, "--output", str(tmp_path / "two.json")]
    source = str(Path(moeits.__file__).parents[1])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": source, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = evaluate(toy, tasks="continuation,arc_easy", num_fewshot=0, data_dir=data, perplexity=text).facts()
    two = Results.load(tmp_path / "two.json").facts()
    assert two["settings"].pop("processes") == 2
    assert one["settings"].pop("processes") == 1
    assert two["tasks"] == one["tasks"]
    assert two["perplexity"]["nats_per_token"] == pytest.approx(one["perplexity"]["nats_per_token"], rel=1e-6)
    assert done.stdout.count("written:") == 1


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("name", "near"), [("arc_esay", "arc_easy"), ("continuatoin", "continuation"), ("piqqa", "piqa")]
)
def test_an_unknown_task_is_told_with_the_nearest_known_one(toy, data, monkeypatch, name, near):
    """Without the harness's index, which costs half a minute."""
    monkeypatch.setattr("moeits.evaluation.tasks._Catalog.all", None)
    for where in (data, None):
        with pytest.raises(SettingError, match=f"There is no task '{name}'. Did you mean '{near}'?"):
            evaluate(toy, tasks=name, data_dir=where)


@pytest.mark.slow
def test_every_task_of_the_harness_is_found_where_its_own_index_has_it():
    from moeits.evaluation.tasks import _Catalog

    catalog = _Catalog()
    theirs = {name: Path(catalog.all.task_index[name].yaml_path) for name in catalog.all.all_subtasks}
    assert {name: catalog.known(name) for name in theirs} == theirs
    assert catalog.known("mmlu") is None
    catalog.check_group("mmlu")


def test_a_data_folder_without_the_items_is_told_with_what_to_fetch(toy, data):
    with pytest.raises(
        EvaluationError, match=r"lacks boolq/test.jsonl.*hf download --repo-type dataset aps/super_glue"
    ):
        evaluate(toy, tasks="boolq", num_fewshot=0, data_dir=data)


def test_a_data_folder_without_the_examples_is_told(toy, tmp_path):
    write_jsonl(tmp_path / "arc_easy" / "test.jsonl", arc_rows(3))
    with pytest.raises(EvaluationError, match=r"lacks arc_easy/train.jsonl .*15 examples.*--num-fewshot 0"):
        evaluate(toy, tasks="arc_easy", data_dir=tmp_path)
    assert evaluate(toy, tasks="arc_easy", num_fewshot=0, data_dir=tmp_path).tasks


def test_too_few_examples_for_the_shots_are_told(toy, data):
    with pytest.raises(EvaluationError, match=r"arc_easy_local has 2 examples .* not enough for 15"):
        evaluate(toy, tasks="arc_easy", data_dir=data)


def test_a_checkpoint_without_a_tokenizer_is_told(data, tmp_path):
    with pytest.raises(CheckpointError, match="toy has no tokenizer"):
        evaluate(make_toy(tmp_path / "toy"), tasks="continuation", data_dir=data)


def test_a_data_folder_that_is_not_there_is_told(toy, tmp_path):
    with pytest.raises(EvaluationError, match="There is no data folder"):
        evaluate(toy, tasks="arc_easy", data_dir=tmp_path / "nowhere")


def test_a_file_with_other_fields_is_told(toy, tmp_path):
    write_jsonl(tmp_path / "continuation" / "test.jsonl", [{"text": "a"}])
    with pytest.raises(EvaluationError, match=r"data of continuation .*query"):
        evaluate(toy, tasks="continuation", data_dir=tmp_path)


def test_a_row_that_lacks_a_field_is_told_by_file_and_line(toy, tmp_path):
    """The harness would ask "None", or end in a traceback, as the field has it."""
    rows = arc_rows(4)
    del rows[2]["question"]
    write_jsonl(tmp_path / "arc_easy" / "test.jsonl", rows)
    with pytest.raises(
        EvaluationError, match=r"arc_easy/test.jsonl, line 3 lacks 'question', which the first line has"
    ):
        evaluate(toy, tasks="arc_easy", num_fewshot=0, data_dir=tmp_path)


@pytest.mark.parametrize("broken", [{"choices": None}, {"answerKey": "Q"}])
def test_a_row_that_makes_no_question_is_told_by_its_number(toy, tmp_path, broken):
    rows = arc_rows(4)
    rows[3] |= broken
    folder = tmp_path / "arc_easy"
    write_jsonl(folder / "test.jsonl", arc_rows(3))
    write_jsonl(folder / "train.jsonl", rows)
    with pytest.raises(EvaluationError, match="Example 4 of arc_easy_local cannot be asked"):
        evaluate(toy, tasks="arc_easy", num_fewshot=4, data_dir=tmp_path)
    write_jsonl(folder / "test.jsonl", rows)
    with pytest.raises(EvaluationError, match=r"Item 4 of arc_easy_local cannot be asked .*arc_easy/test.jsonl"):
        evaluate(toy, tasks="arc_easy", num_fewshot=0, data_dir=tmp_path)


def test_the_continuation_task_asks_for_its_data(toy):
    with pytest.raises(EvaluationError, match=r"--data-dir FOLDER with FOLDER/continuation/test.jsonl"):
        evaluate(toy, tasks="continuation")


def test_a_data_set_out_of_reach_is_told_with_how_to_bring_it(toy, monkeypatch):
    def unreachable(**_):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        EvaluationError, match="hf download --repo-type dataset allenai/ai2_arc --local-dir FOLDER/allenai/ai2_arc"
    ):
        evaluate(toy, tasks="arc_easy")


def test_what_vllm_does_not_open_is_told_in_its_own_sentence(toy, data, monkeypatch):
    """A stand-in for the harness's class, and for what vLLM raises of a config that a plug-in refuses."""

    class Refuses:
        def __init__(self, **_):
            raise ValueError(
                "1 validation error for ModelConfig\n  Value error, The layers of this checkpoint keep unequal numbers."
                "\n    For further information visit a page"
            )

    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    harness = types.ModuleType("lm_eval.models.vllm_causallms")
    harness.VLLM = Refuses  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", harness)
    with pytest.raises(
        EvaluationError, match=r"^vLLM does not open \S*: The layers of this checkpoint keep unequal numbers\.$"
    ):
        evaluate(toy, tasks="continuation", data_dir=data, backend="vllm")


def test_vllm_that_is_not_installed_is_named(toy, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match="pip install vllm"):
        evaluate(toy, tasks="continuation", data_dir=data, backend="vllm")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backend": "tgi"}, "no backend 'tgi'"),
        ({"dtype": "float23"}, "no dtype 'float23'"),
        ({"device": "gpu"}, "--device gpu cannot be used here"),
        ({"num_fewshot": -1}, "--num-fewshot -1 is out of range"),
        ({"batch_size": 0}, "--batch-size 0 is out of range"),
        ({"limit": 0}, "--limit 0 is out of range"),
        ({"tasks": " "}, "nothing to evaluate"),
        ({"backend": "vllm", "perplexity": "t.txt"}, "--perplexity needs --backend hf"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(toy, data, asked, sentence):
    with pytest.raises(SettingError, match=sentence):
        evaluate(toy, **{"tasks": "continuation", "data_dir": data, **asked})


def test_an_output_without_a_folder_is_refused_before_anything_is_run(toy, data, tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        evaluate(toy, tasks="continuation", data_dir=data, output=tmp_path / "no" / "r.json")


def test_names_are_taken_once_and_paper_stands_for_five():
    assert task_names("paper,boolq, continuation") == [*PAPER, "continuation"]


def test_the_command_shows_the_numbers_and_what_was_cut(toy, data, tmp_path, monkeypatch, capsys):
    for name in ("a.json", "b.json"):
        command = f"moeits evaluate {toy} --tasks continuation --data-dir {data} --output {tmp_path / name}"
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit, match="0"):
            main()
    shown = capsys.readouterr()
    assert "continuation_local 8 of 20 (2 of 5 items)" in shown.out
    assert shown.err == ""
    monkeypatch.setattr(sys, "argv", ["moeits", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "continuation_local, 5 items" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_in_one_sentence(toy, data, monkeypatch, capsys):
    command = f"moeits evaluate {toy} --tasks boolq --num-fewshot 0 --data-dir {data}"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match="2"):
        main()
    shown = capsys.readouterr()
    assert shown.err.startswith("moeits: The data folder lacks boolq/test.jsonl")
    assert len(shown.err.strip().splitlines()) == 1


def test_prompts_that_were_cut_are_one_note_with_the_context_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = {"requests": 20, "requests_cut": 8, "items_cut": 2, "longest_tokens": 900, "room_tokens": 513}
    row = {"num_fewshot": 15, "n_samples": {"original": 9, "effective": 5}, "chance": 0.25, "version": 1.0}
    whole = {**prompts, "requests_cut": 0, "items_cut": 0, "longest_tokens": 60}
    tasks = {"a": {**row, "prompts": prompts}, "b": {**row, "prompts": {**prompts, "longest_tokens": 800}}}
    tasks |= {"c": {**row, "prompts": whole}, "d": {**row, "prompts": None}}
    facts = {"model": {}, "settings": {"context_tokens": 512}, "versions": {}, "perplexity": None, "samples": {}}
    show_results(Results(tasks=tasks, **facts), {})
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert "in 2 of 4 tasks, since the longest has 900 tokens and the context 512" in note
    assert "a 8 of 20 (2 of 5 items); b 8 of 20 (2 of 5 items)." in note
