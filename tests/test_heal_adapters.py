"""What trains, and what it costs: exactly what was asked for, with dropout, and no second copy of the experts."""

from pathlib import Path

import numpy as np
import pytest

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import HealingError
from moeits.experts.layout import MoELayout
from moeits.healing.recipe import HealingRecipe, recipe_named
from moeits.healing.targets import targets_of
from tests.healing_toys import make_pruned
from tests.toys import make_toy

torch = pytest.importorskip("torch")

RECIPE = HealingRecipe(rank=4, alpha=8.0, dropout=0.0)


def adapted(folder: Path, recipe: HealingRecipe = RECIPE):
    """An adapted model whose adapters do something, its targets, and its stock twin."""
    from moeits.healing.adapters import adapt
    from moeits.healing.training import load_model

    checkpoint = Checkpoint.open(folder)
    moe = MoELayout.of(checkpoint)
    targets = targets_of(checkpoint, moe, recipe.targets)
    model = load_model(checkpoint, "float32")
    torch.manual_seed(0)
    adapt(model, targets, moe, recipe)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return model, targets, load_model(checkpoint, "float32")


def logits(model):
    return model(input_ids=torch.arange(2, 26).view(2, 12), use_cache=False).logits


def test_a_grouped_product_is_one_product_per_group():
    from moeits.healing.adapters import grouped_linear

    for columns, rows in ((8, 12), (7, 5)):  # aligned as torch's grouped product wants it, and not
        weights = torch.randn(4, rows, columns, dtype=torch.float32, requires_grad=True)
        inputs = torch.randn(9, columns)
        ends = torch.tensor([3, 3, 7, 9])  # the second group is empty
        found = grouped_linear(inputs, weights, ends)
        groups = [inputs[0:3], inputs[3:3], inputs[3:7], inputs[7:9]]
        wanted = torch.cat([group @ weight.T for group, weight in zip(groups, weights, strict=True)])
        # The same sums in another order.
        assert torch.allclose(found, wanted, atol=1e-6)
        gradients = [torch.autograd.grad((each**2).sum(), weights, retain_graph=True)[0] for each in (found, wanted)]
        assert torch.allclose(*gradients, atol=1e-5)


def test_an_untrained_adapter_changes_nothing(tmp_path: Path):
    model, _, stock = adapted(make_pruned(tmp_path))
    assert not torch.allclose(logits(model), logits(stock), atol=1e-3)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            parameter.data.zero_()
    # The experts' outputs are added up in another order than in the stock class.
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)


def test_dropout_acts_on_the_experts_and_on_the_router(tmp_path: Path):
    pruned = make_pruned(tmp_path)
    for group in ("experts", "router"):
        without, _, _ = adapted(pruned, HealingRecipe(rank=4, dropout=0.0, targets=(group,)))
        with_dropout, _, _ = adapted(pruned, HealingRecipe(rank=4, dropout=0.1, targets=(group,)))
        assert torch.equal(logits(without.train()), logits(without.train()))
        assert not torch.equal(logits(with_dropout.train()), logits(with_dropout.train()))
        assert torch.equal(logits(with_dropout.eval()), logits(with_dropout.eval()))


@pytest.mark.parametrize("targets", [("router",), ("experts",), ("router", "experts", "attention", "shared_experts")])
def test_exactly_the_asked_parameters_train(tmp_path: Path, targets):
    from moeits.healing.adapters import check_trainable

    recipe = HealingRecipe(rank=4, targets=targets)
    model, found, _ = adapted(make_pruned(tmp_path, "deepseek_v2"), recipe)
    check_trainable(model, found, recipe)
    groups = {
        "router": "gate.factors",
        "experts": "experts.factors",
        "attention": "self_attn",
        "shared_experts": "shared_",
    }
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for group, part in groups.items():
        own = [n for n in names if part in n and (group != "experts" or "shared" not in n)]
        assert bool(own) == (group in targets)


def test_training_stops_with_the_difference_if_anything_else_would_train(tmp_path: Path):
    from moeits.healing.adapters import check_trainable

    model, targets, _ = adapted(make_pruned(tmp_path))
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(HealingError, match=r"0 adapters are missing .* 1 are too many \(lm_head.weight \[64, 32\]\)"):
        check_trainable(model, targets, RECIPE)
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].mlp.gate.requires_grad_(False)
    with pytest.raises(HealingError, match="2 adapters are missing"):
        check_trainable(model, targets, RECIPE)


def test_weights_that_transformers_changed_on_loading_are_not_trained(tmp_path: Path):
    from moeits.healing.adapters import check_same_weights

    checkpoint = Checkpoint.open(make_pruned(tmp_path))
    moe = MoELayout.of(checkpoint)
    _, targets, stock = adapted(checkpoint.folder)
    check_same_weights(stock, targets, checkpoint, moe)
    stock.model.layers[1].mlp.gate.weight.data[0] += 1
    with pytest.raises(HealingError, match=r"model.layers.1.mlp.gate as something else"):
        check_same_weights(stock, targets, checkpoint, moe)


def test_the_backward_pass_holds_no_second_copy_of_the_experts(tmp_path: Path):
    toy = make_toy(tmp_path / "wide", "mixtral", dtype="float32", experts=8, layers=2)
    model, _, _ = adapted(toy)
    experts = {p.untyped_storage().data_ptr(): p for n, p in model.named_parameters() if "frozen" in n and p.dim() == 3}
    expert_shapes = {p.shape for p in experts.values()}
    copies = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in experts and tensor.numel() >= min(
            map(torch.Size.numel, expert_shapes)
        ):
            copies.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=torch.arange(2, 6).view(1, 4), use_cache=False)
    assert copies == []


def test_groups_that_match_nothing_are_one_sentence(tmp_path: Path):
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", "mixtral"))
    with pytest.raises(
        HealingError, match=r"--targets shared_experts matches nothing: .* It has router, experts, attention"
    ):
        targets_of(checkpoint, MoELayout.of(checkpoint), ("shared_experts",))


def test_the_authors_program_trains_the_router_in_its_qwen_script_only(tmp_path: Path):
    for model_type, targets in {
        "mixtral": ("experts", "attention"),
        "qwen2_moe": ("experts", "attention", "shared_experts", "router"),
        "deepseek_v2": ("experts", "attention", "shared_experts"),
    }.items():
        moe = MoELayout.of(Checkpoint.open(make_toy(tmp_path / model_type, model_type)))
        assert recipe_named("authors-code", moe.architecture).targets == targets


def test_the_shared_experts_gate_is_no_target(tmp_path: Path):
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy"))
    found = targets_of(checkpoint, MoELayout.of(checkpoint), ("shared_experts",))
    assert {target.module.rpartition(".")[2] for target in found} == {"gate_proj", "up_proj", "down_proj"}


def test_the_papers_recipe_is_the_default():
    facts = HealingRecipe().facts()
    paper = {"rank": 64, "alpha": 16, "dropout": 0.1, "batch_size": 16, "accumulation": 4, "learning_rate": 2e-4}
    paper |= {"warmup": 0.05, "weight_decay": 0.05, "neftune": 5.0, "schedule": "cosine", "sequence_length": 2048}
    assert {name: facts[name] for name in paper} == paper
    assert (facts["targets"], facts["steps"], facts["loss_on"]) == (["router", "experts"], 500, "whole")


def test_balance_is_one_where_the_load_is_even_and_counts_each_layer_by_itself():
    from moeits.healing.objective import RouterBalance

    class Router(torch.nn.Module):
        def forward(self, logits, chosen):
            return logits, None, chosen

    routers = [Router(), Router()]
    balance = RouterBalance([(routers[0], 4), (routers[1], 2)])
    even = torch.tensor([[0], [1], [2], [3]])
    padded = torch.cat([torch.zeros(4, 2), torch.full((4, 2), torch.finfo(torch.float32).min)], 1)
    routers[0](torch.zeros(4, 4), even)
    routers[1](padded, torch.zeros(4, 1, dtype=torch.long))
    mask = {"attention_mask": torch.ones(2, 2)}
    # Even probabilities: n sum f_i / n = 1, whoever is chosen. All probability on the chosen one: n.
    assert float(balance(mask)) == pytest.approx(1)
    balance.start()
    routers[1](torch.tensor([[99.0, 0.0]]).expand(4, 2), torch.zeros(4, 1, dtype=torch.long))
    assert float(balance(mask)) == pytest.approx(2)


def test_distillation_is_zero_for_the_teacher_itself_and_the_divergence_otherwise():
    from moeits.healing.objective import Distillation

    taught, found = torch.randn(1, 5, 7), torch.randn(1, 5, 7)

    class Teacher(torch.nn.Module):
        def forward(self, **_):
            return type("Output", (), {"logits": taught})

    batch = {"input_ids": None, "attention_mask": None, "labels": torch.tensor([[1, 2, 3, -100, 4]])}
    assert float(Distillation(Teacher(), 2.0)(batch, taught)) == pytest.approx(0, abs=1e-6)
    p, q = (np.exp(x.numpy()[0, [0, 1, 3]]) for x in (taught, found))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert float(Distillation(Teacher(), 1.0)(batch, found)) == pytest.approx(
        float((p * np.log(p / q)).sum()), rel=1e-4
    )
