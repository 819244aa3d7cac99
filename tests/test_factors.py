"""Experts stored as two thin factors: smaller by what was promised, the same numbers, and nothing for who cannot."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.command_line.app import main
from moeits.errors import CheckpointError, EvaluationError, MoeitsError, SettingError
from moeits.evaluation.harness import _with_vllm
from moeits.evaluation.settings import Inference
from moeits.experts.layout import MoELayout
from moeits.servers import sglang, vllm
from moeits.surgery.factors import FAMILIES
from tests.evaluation_toys import give_tokenizer
from tests.masked import logits
from tests.toys import HIDDEN, VOCAB, WIDTH, fuse, make_toy, read_config, read_tensors, write_checkpoint

TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32}


def low_rank(toy: Path, **asked: Any) -> PruningPlan:
    choice = {"tau": 0.5, "min_experts": 2, "edit": "low-rank", "mean_rank": "4", "rank_power": 0.0}
    return moeits.plan(moeits.score(toy), **{**choice, **asked})


def thin_and_whole(toy: Path, plan: PruningPlan, folder: Path) -> tuple[Path, Path]:
    for name, factors in (("thin", True), ("whole", False)):
        moeits.prune(toy, plan=plan, output=folder / name, factors=factors)
    return folder / "thin", folder / "whole"


def opened(folder: Path) -> Any:
    return moeits.load(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_whole_matrices_by_moeits_and_by_the_code_that_travels(family: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", family, dtype="float32")
    thin, whole = thin_and_whole(toy, low_rank(toy), tmp_path)
    wanted = logits(opened(whole), TOKENS)
    assert (logits(opened(thin), TOKENS) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    stock = AutoModelForCausalLM.from_pretrained(thin, dtype=torch.float32, trust_remote_code=True)
    assert type(stock).__name__ == read_config(toy)["architectures"][0]
    assert torch.equal(logits(stock, TOKENS), logits(opened(thin), TOKENS))
    plain = moeits.prune(toy, plan=replace(low_rank(toy), edit=None), output=tmp_path / "plain")
    assert plain.kept
    assert (logits(opened(tmp_path / "plain"), TOKENS) - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("reduction", [0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_loaders_refuse_it_instead_of_making_weights_up(family: str, reduction: float, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", family)
    plan = low_rank(toy, tau=None, reduction=reduction)
    moeits.prune(toy, plan=plan, output=tmp_path / "thin", factors=True)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "thin", trust_remote_code=False)
    assert opened(tmp_path / "thin")


@pytest.mark.parametrize("form", ["qwen2_moe", "qwen2_moe fused", "mixtral"])
def test_factors_are_the_svd_of_numpy_and_their_sizes_those_that_are_said(form: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", form.removesuffix(" fused"), dtype="float32")
    toy = fuse(toy, tmp_path / "fused") if form.endswith("fused") else toy
    plan = low_rank(toy)
    told = moeits.prune(toy, plan=plan, output=tmp_path / "thin", factors=True)
    tensors, before = read_tensors(tmp_path / "thin"), Checkpoint.open(toy)
    layout, routed = MoELayout.of(before), 0
    for layer, kept in plan.kept.items():
        for number, expert in enumerate(kept):
            for projection, shape in {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}.items():
                name = f"model.layers.{layer}.mlp.experts.{number}.{projection}"
                left, right = tensors[f"{name}.left"], tensors[f"{name}.right"]
                assert (left.shape, right.shape) == ((shape[0], 4), (4, shape[1]))
                u, s, vt = np.linalg.svd(layout.read(before, layer, expert, projection).astype(np.float64))
                np.testing.assert_allclose(left @ right, (u[:, :4] * s[:4]) @ vt[:4], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.sqrt(s[:4]), rtol=1e-5)
                routed += left.size + right.size
    assert not [name for name in tensors if ".experts." in name and not name.endswith((".left", ".right"))]
    parameters, nbytes = (sum(getattr(t, of) for t in tensors.values()) for of in ("size", "nbytes"))
    summary, everything = told.summary, sum(t.size for t in read_tensors(toy).values())
    assert (summary["parameters_after"], summary["bytes_after"]) == (parameters, nbytes)
    routed_before = sum(6 * 3 * WIDTH * HIDDEN for _ in plan.kept)
    assert summary["reduction"] == pytest.approx(1 - routed / routed_before)
    assert summary["reduction_of_all"] == pytest.approx(1 - parameters / everything)
    assert parameters < moeits.prune(toy, plan=plan, output=tmp_path / "whole").summary["parameters_after"]
    assert sum(p.numel() for p in opened(tmp_path / "thin").parameters()) == parameters
    found = moeits.inspect(tmp_path / "thin")
    assert (found.parameters, found.nbytes, found.routed_parameters) == (parameters, nbytes, routed)
    assert (found.storage, {row.layer: row.experts for row in found.layers}) == ("as factors", plan.counts)
    of_plan = moeits.inspect(tmp_path / "thin" / "plan.json")
    assert (of_plan.parameters, of_plan.nbytes) == (parameters, nbytes)


def test_a_matrix_stays_whole_where_factors_save_nothing_and_ranks_differ_by_importance(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    plan = low_rank(toy, tau=None, experts_per_layer=3)
    assert plan.edit is not None
    of_each = [{"times_mean_rank": times} for times in (0.5, 1.0, 2.5)]
    times = {layer: dict(zip(kept, of_each, strict=True)) for layer, kept in plan.kept.items()}
    plan = replace(plan, edit=replace(plan.edit, settings={"mean_rank": "4"}, details=times))
    thin, whole = thin_and_whole(toy, plan, tmp_path)
    ranks = read_config(thin)["moeits"]["factors"]
    assert ranks == {str(i): {name: [2, 4, None] for name in ("gate", "up", "down")} for i in plan.kept}
    tensors, same = read_tensors(thin), read_tensors(whole)
    name = "model.layers.0.mlp.experts.2."
    assert tensors[f"{name}up.whole"].tobytes() == same[f"{name}up_proj.weight"].tobytes()
    wanted = logits(opened(whole), TOKENS)
    assert (logits(opened(thin), TOKENS) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_factors_are_of_what_an_edit_before_made_and_a_plan_replays_to_the_same_bytes(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    plan = low_rank(toy, tau=None, experts_per_layer=3, edit="average,low-rank")
    thin, whole = thin_and_whole(toy, plan, tmp_path)
    averaged = replace(plan, edit=replace(plan.edit, then=()))
    moeits.prune(toy, plan=averaged, output=tmp_path / "averaged")
    before, tensors = Checkpoint.open(tmp_path / "averaged"), read_tensors(thin)
    own = MoELayout.of(before).read(before, 0, 1, "down").astype(np.float64)
    u, s, vt = np.linalg.svd(own)
    left, right = (
        tensors[f"model.layers.0.mlp.experts.1.down.{part}"].astype(np.float64) for part in ("left", "right")
    )
    np.testing.assert_allclose(left @ right, (u[:, :4] * s[:4]) @ vt[:4], atol=2**-7 * s[0])
    wanted = logits(opened(whole), TOKENS)  # of bfloat16 files, which differ in how they were rounded
    assert (logits(opened(thin), TOKENS) - wanted).abs().max() < 0.05 * wanted.abs().max()
    moeits.prune(toy, plan=thin / "plan.json", output=tmp_path / "again", factors=True)
    moeits.prune(toy, plan=thin / "plan.json", output=tmp_path / "whole again")
    files = {
        name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("thin", "again", "whole", "whole again")
    }
    assert files["thin"] == files["again"]
    assert files["whole"] == files["whole again"]
    assert "factors" not in PruningPlan.load(tmp_path / "whole again" / "plan.json").settings


def test_each_matrix_keeps_the_dtype_that_it_had(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="bfloat16")
    mixed = {n: t.astype(np.float32) if "down_proj" in n else t for n, t in read_tensors(toy).items()}
    source = write_checkpoint(tmp_path / "mixed", read_config(toy), mixed)
    moeits.prune(source, plan=low_rank(source), output=tmp_path / "thin", factors=True)
    tensors = read_tensors(tmp_path / "thin")
    of_experts = {n: str(t.dtype) for n, t in tensors.items() if n.endswith((".left", ".right"))}
    assert of_experts
    assert all(dtype == ("float32" if ".down." in name else "bfloat16") for name, dtype in of_experts.items())
    assert opened(tmp_path / "thin")


def test_a_shared_checkpoint_says_on_its_card_what_it_is_and_what_opens_it(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    thin, whole = thin_and_whole(toy, low_rank(toy), tmp_path)
    said = {name: " ".join((tmp_path / name / "README.md").read_text().split()) for name in ("thin", "whole")}
    assert "stored as two thin factors" in said["thin"]
    assert "in as many bytes as before" not in said["thin"]
    assert "trust_remote_code=True" in said["thin"]
    assert "prune again from the same plan without `--factors`" in said["thin"]
    assert "in as many bytes as before" in said["whole"]
    assert (thin / "modeling_moeits.py").is_file()
    assert whole.is_dir()


def test_it_can_be_evaluated_trained_and_made_from_its_config_alone(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    give_tokenizer(toy)
    thin, whole = thin_and_whole(toy, low_rank(toy), tmp_path)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "to be or not to be " * n}) + "\n" for n in range(2, 8)))
    found = [moeits.evaluate(folder, perplexity=text, dtype="float32") for folder in (thin, whole)]
    assert found[0].perplexity["nats_per_token"] == pytest.approx(found[1].perplexity["nats_per_token"], rel=1e-5)
    assert found[0].model["experts"] == found[1].model["experts"]
    assert found[0].model["parameters"] < found[1].model["parameters"]
    model = opened(thin).train()
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".experts." in n and n.endswith("left"))
    made = AutoModelForCausalLM.from_config(opened(thin).config, trust_remote_code=True)
    assert all(torch.isfinite(p).all() for p in made.parameters())
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in opened(thin).named_parameters()}


# -------------------------------------------------------------------------------------------------------- bad input


def test_other_verbs_say_one_sentence_and_leave_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    give_tokenizer(toy)
    plan = low_rank(toy)
    moeits.prune(toy, plan=plan, output=tmp_path / "thin", factors=True)
    thin, out = tmp_path / "thin", tmp_path / "out"
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"text": "to be or not to be " * 9}) + "\n")
    verbs: Mapping[str, Any] = {
        "score": lambda: moeits.score(thin, output=out),
        "calibrate": lambda: moeits.calibrate(thin, output=out, device="cpu", **SMALL),
        "prune": lambda: moeits.prune(thin, plan=plan, any_fingerprint=True, output=out),
        "simplify": lambda: moeits.simplify(thin, experts_per_layer=2, output=out),
        "refit": lambda: moeits.refit(thin, parent=toy, output=out, device="cpu", **SMALL),
        "heal": lambda: moeits.heal(thin, data=data, output=out),
        "measure": lambda: moeits.measure(thin, output=out),
        "export": lambda: moeits.export(thin, gguf=out),
        "inspect with a budget": lambda: moeits.inspect(thin, reduction=0.5),
    }
    for verb, call in verbs.items():
        with pytest.raises(MoeitsError, match=r"stores its experts as factors .* without --factors\.$") as found:
            call()
        assert str(found.value).count(". ") == 0, verb
        assert not out.exists(), verb
    for server, named in ((vllm, "vLLM"), (sglang, "SGLang")):
        with pytest.raises(CheckpointError, match=f"stored as factors, which {named} has no class for"):
            server.check("Qwen2MoeForCausalLM", opened(thin).config)
    with pytest.raises(CheckpointError, match="stored as factors, which SGLang has no class for"):
        sglang.opened(opened(thin).config)
    with pytest.raises(EvaluationError, match="--backend vllm has no class for experts stored as factors"):
        _with_vllm(Checkpoint.open(thin), Inference(backend="vllm"))


@pytest.mark.parametrize(
    ("edit", "asked", "sentence"),
    [
        ("none", {}, "--factors writes what --edit low-rank makes, and this plan has no edit: leave"),
        ("low-rank,mask", {}, "--edit low-rank makes, and this plan ends with mask: leave --factors out"),
        ("low-rank", {"layout": "uniform"}, "none of them reads --factors: leave one of the two out"),
        ("low-rank", {"layout": "padded"}, "none of them reads --factors: leave one of the two out"),
    ],
)
def test_factors_of_nothing_or_for_nobody_are_refused_at_the_command_line(
    edit: str,
    asked: dict[str, str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = make_toy(tmp_path / "toy")
    settings: dict[str, Any] = {"rank_power": 0.0, "mean_rank": "4"} if "low-rank" in edit else {}
    settings |= {"mask_by": "magnitude"} if "mask" in edit else {}
    moeits.plan(moeits.score(toy), experts_per_layer=3, edit=edit, output=tmp_path / "plan.json", **settings)
    words = ["prune", toy, "--plan", tmp_path / "plan.json", "--factors", "--output", tmp_path / "out"]
    words += [word for name, value in asked.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["moeits", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_family_that_the_loader_does_not_know_is_refused(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "gpt_oss")
    with pytest.raises(
        SettingError, match=r"known to the loader for mixtral, .*, and not for gpt_oss: leave --factors"
    ):
        moeits.prune(toy, plan=low_rank(toy), output=tmp_path / "out", factors=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ("many", "should give ranks by layer"),
        ({"0": {"gate": [0]}}, "should give ranks by layer"),
        ({"0": {"gate": [1], "up": [1, 2], "down": [1]}}, "a rank for each expert of a layer"),
        ({"0": {}}, "should give ranks by layer"),
    ],
)
def test_ranks_that_are_none_are_one_sentence(factors: Any, sentence: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    broken = write_checkpoint(
        tmp_path / "broken", read_config(toy) | {"moeits": {"factors": factors}}, read_tensors(toy)
    )
    for call in (moeits.inspect, moeits.score, moeits.load):
        with pytest.raises(CheckpointError, match=sentence):
            call(broken)


def test_a_dry_run_says_how_large_it_would_be(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    foreseen = moeits.prune(toy, plan=low_rank(toy), output=tmp_path / "out", factors=True, dry_run=True)
    made = moeits.prune(toy, plan=low_rank(toy), output=tmp_path / "out", factors=True)
    assert foreseen.bytes_after == made.summary["bytes_after"]
