"""The plug-in for vLLM, against a small package of the same names and signatures.

`python scripts/clients vllm MODELS` asks vLLM itself, in an environment of its own. What other versions have is read
from their sources (`scripts/vllm_sources.py`), here where vLLM is installed.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import moeits
from moeits.errors import CheckpointError, SettingError
from moeits.servers import vllm as plug_in
from moeits.servers.unequal import config_of_layer, is_ours, is_unequal

from .toys import make_toy
from .wrappers import make_wrapper

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import vllm_sources  # noqa: E402

KEPT = {0: (0, 2, 5), 1: (3,), 2: (0, 1, 2, 4, 5)}
COUNTS, TOP_K = [3, 1, 5], [2, 1, 2]

STAND_IN = {
    "__init__.py": '__version__ = "0.33.0"\n',
    "config.py": "current = None\n\n\ndef get_current_vllm_config():\n    return current\n",
    "model_executor/models/registry.py": """
import importlib

_MODELS = {
    "DeepseekV2ForCausalLM": ("deepseek_v2", "DeepseekV2ForCausalLM"),
    "MixtralForCausalLM": ("mixtral", "MixtralForCausalLM"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "HunYuanMoEV1ForCausalLM": ("mixtral", "MixtralForCausalLM"),
    "OlmoeForCausalLM": ("transformers.moe", "TransformersMoEForCausalLM"),
}


class _ModelRegistry:
    def inspect_model_cls(self, architectures, model_config):
        return "facts", architectures[0]

    def resolve_model_cls(self, architectures, model_config):
        module, name = _MODELS[architectures[0]]
        return getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name), architectures[0]


ModelRegistry = _ModelRegistry()
""",
    "transformers_utils/model_arch_config_convertor.py": """
class ModelArchConfigConvertorBase:
    def __init__(self, hf_config):
        self.hf_config = hf_config

    def is_deepseek_mla(self):
        return self.hf_config.model_type == "deepseek_v2"

    def get_per_layer_hf_configs(self):
        return list(self.hf_config.per_layer_config) if self.hf_config.is_heterogeneous else None
""",
    # It serves what transformers builds; the model is one of transformers itself.
    "model_executor/models/transformers/utils.py": """
import contextlib


@contextlib.contextmanager
def init_on_device_without_buffers(device):
    entered.append(device.type)
    yield


entered = []
""",
    "model_executor/models/transformers/moe.py": """
from types import SimpleNamespace

from transformers import AutoModel


def FusedMoEFactory(**arguments):
    return SimpleNamespace(**arguments)


class MoEMixin:
    def __init__(self, *, vllm_config, prefix=""):
        self.config = vllm_config.model_config.hf_config
        self.text_config = self.config.get_text_config()
        self.model = AutoModel.from_config(self.config)
        self.pipeline_parallel()
        names = [name for name, _ in self.model.named_modules() if name.endswith(".mlp.experts")]
        # As vLLM does: the numbers of the whole model, for every layer.
        common = {"num_experts": self.text_config.num_experts, "top_k": self.text_config.num_experts_per_tok}
        self.layers = [FusedMoEFactory(prefix=f"model.{name}", **common) for name in names]
        for name, layer in zip(names, self.layers):
            layer.experts, layer.router = layer.num_experts, self.model.get_submodule(name[:-8]).gate.weight.shape[0]

    def pipeline_parallel(self):
        # What it shares out among ranks must be of its own size by now.
        self.shared_out = [layer.mlp.gate.weight.shape[0] for layer in self.model.get_decoder().layers]


class TransformersMoEForCausalLM(MoEMixin): ...
""",
    "model_executor/models/utils.py": """
def make_layers(num_hidden_layers, layer_fn, prefix):
    return [layer_fn(prefix=f"{prefix}.{index}") for index in range(num_hidden_layers)]
""",
    "model_executor/models/mixtral.py": """
from vllm.model_executor.models.utils import make_layers


class MixtralDecoderLayer:
    def __init__(self, config, cache_config=None, quant_config=None, prefix="", enable_eplb=False):
        self.config, self.experts, self.top_k = config, config.num_local_experts, config.num_experts_per_tok


class MixtralForCausalLM:
    def __init__(self, *, vllm_config, prefix=""):
        config = vllm_config.model_config.hf_config
        self.layers = make_layers(
            config.num_hidden_layers, lambda prefix: MixtralDecoderLayer(config, None, prefix=prefix), "model.layers"
        )
""",
    "model_executor/models/qwen3_moe.py": """
from vllm.model_executor.models.utils import make_layers


class Qwen3MoeDecoderLayer:
    def __init__(self, vllm_config, prefix="", is_fused_checkpoint_transposed=False, mrope_positions_factor=4):
        self.config, self.shared = vllm_config.model_config.hf_text_config, vllm_config.compilation_config
        self.experts, self.top_k = self.config.num_experts, self.config.num_experts_per_tok


class Qwen3MoeForCausalLM:
    def __init__(self, *, vllm_config, prefix=""):
        number = vllm_config.model_config.hf_config.num_hidden_layers
        self.layers = make_layers(number, lambda prefix: Qwen3MoeDecoderLayer(vllm_config, prefix), "model.layers")
""",
    "model_executor/models/deepseek_v2.py": """
from vllm.model_executor.models.utils import make_layers


class DeepseekV2DecoderLayer:
    def __init__(self, vllm_config, prefix, config=None, topk_indices_buffer=None, index_group_builder=None):
        self.config = config = vllm_config.model_config.hf_config if config is None else config
        self.experts, self.top_k = config.n_routed_experts, config.num_experts_per_tok


class DeepseekV2ForCausalLM:
    def __init__(self, *, vllm_config, prefix=""):
        number = vllm_config.model_config.hf_config.num_hidden_layers
        self.layers = make_layers(
            number, lambda prefix: DeepseekV2DecoderLayer(vllm_config=vllm_config, prefix=prefix), "model.layers"
        )
        # As its weights loader asks.
        self.most = vllm_config.model_config.hf_config.n_routed_experts
""",
}


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, importable, with the plug-in on; the folder that holds it."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}
    for name in before:
        del sys.modules[name]
    folder = tmp_path / "site"
    for file, source in STAND_IN.items():
        for package in (Path(file).parent, *Path(file).parent.parents):
            (folder / "vllm" / package).mkdir(parents=True, exist_ok=True)
            (folder / "vllm" / package / "__init__.py").touch()
        (folder / "vllm" / file).write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    plug_in.register()
    plug_in.register()  # as in processes that load plug-ins twice
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]
    sys.modules.update(before)


def config_of(folder: Path, model_type: str, layout: str) -> Any:
    """What transformers makes of the config.json of a pruned toy."""
    from transformers import AutoConfig

    changes = {"first_k_dense_replace": 0} if model_type == "deepseek_v2" else {}
    source = make_toy(folder / f"source-{layout}", model_type, **changes)
    plan = moeits.plan(moeits.score(source), experts_per_layer=4)
    if layout == "per-layer":
        plan = replace(plan, kept=KEPT)
    moeits.prune(source, plan=plan, output=folder / layout, layout=layout)
    return AutoConfig.from_pretrained(folder / layout)


def built(config: Any, **parallel: bool) -> Any:
    """The model that vLLM would build of a config, by way of its registry."""
    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    settings = {"enable_expert_parallel": False, "enable_eplb": False, **parallel}
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config, hf_text_config=config),
        parallel_config=SimpleNamespace(**settings),
        compilation_config={},
    )
    importlib.import_module("vllm.config").current = vllm_config  # type: ignore[attr-defined]
    registry.inspect_model_cls(config.architectures, vllm_config.model_config)
    model_class, _ = registry.resolve_model_cls(config.architectures, vllm_config.model_config)
    model = model_class(vllm_config=vllm_config)
    assert all(
        getattr(layer, "shared", vllm_config.compilation_config) is vllm_config.compilation_config
        for layer in model.layers
    )
    assert vllm_config.model_config.hf_config is config
    return model


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v2"])
def test_each_layer_has_its_own_count_and_choice(tmp_path: Path, model_type: str) -> None:
    model = built(config_of(tmp_path, model_type, "per-layer"))
    assert [layer.experts for layer in model.layers] == COUNTS
    assert [layer.top_k for layer in model.layers] == TOP_K
    assert getattr(model, "most", 6) >= max(COUNTS)


@pytest.mark.usefixtures("vllm")
def test_what_transformers_builds_has_routers_and_experts_of_each_layers_own_count(tmp_path: Path) -> None:
    model = built(config_of(tmp_path, "olmoe", "per-layer"))
    assert [layer.experts for layer in model.layers] == [layer.router for layer in model.layers] == COUNTS
    assert [layer.top_k for layer in model.layers] == TOP_K
    assert model.shared_out == COUNTS
    # Two of the three layers lost experts in number; all three may have been built anew, as vLLM builds modules.
    assert set(importlib.import_module("vllm.model_executor.models.transformers.utils").entered) == {"cpu"}


@pytest.mark.usefixtures("vllm")
def test_what_transformers_builds_uniformly_is_not_touched(tmp_path: Path) -> None:
    built(config_of(tmp_path, "olmoe", "per-layer"))
    model = built(config_of(tmp_path, "olmoe", "uniform"), enable_expert_parallel=True)
    assert [layer.experts for layer in model.layers] == [layer.router for layer in model.layers] == [4, 4, 4]


@pytest.mark.usefixtures("vllm")
def test_expert_parallelism_of_what_transformers_builds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="leave out --enable-expert-parallel"):
        built(config_of(tmp_path, "olmoe", "per-layer"), enable_expert_parallel=True)


def test_layers_of_a_model_that_takes_pictures_have_configs_of_their_own(tmp_path: Path) -> None:
    from transformers import AutoConfig

    source = make_wrapper(tmp_path / "source", "qwen3_vl_moe")
    plan = moeits.plan(moeits.score(source), experts_per_layer=3)
    kept = {layer: tuple(range(1 + layer)) for layer in plan.kept}
    moeits.prune(source, plan=replace(plan, kept=kept), output=tmp_path / "out", layout="per-layer")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    text = config.get_text_config()
    assert is_unequal(config)
    configs = {layer: config_of_layer(config, text, layer) for layer in kept}
    assert {layer: single.num_experts for layer, single in configs.items()} == {i: 1 + i for i in kept}
    assert text.num_experts == AutoConfig.from_pretrained(source).get_text_config().num_experts
    assert all(type(single) is type(text) for single in configs.values())


@pytest.mark.usefixtures("vllm")
def test_without_the_plug_in_a_layer_cannot_be_built(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "per-layer")
    module = importlib.import_module("vllm.model_executor.models.mixtral")
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        module.MixtralDecoderLayer(config, prefix="model.layers.0")


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_a_uniform_checkpoint_is_not_touched(tmp_path: Path, model_type: str) -> None:
    config = config_of(tmp_path, model_type, "uniform")
    model = built(config, enable_expert_parallel=True)
    assert [layer.experts for layer in model.layers] == [4, 4, 4]
    assert all(layer.config is config for layer in model.layers)
    assert not is_ours(type(model.layers[0]).__init__)


@pytest.mark.usefixtures("vllm")
def test_a_uniform_checkpoint_after_an_unequal_one_keeps_its_config(tmp_path: Path) -> None:
    built(config_of(tmp_path, "mixtral", "per-layer"))
    config = config_of(tmp_path, "mixtral", "uniform")
    model = built(config, enable_expert_parallel=True)
    assert is_ours(type(model.layers[0]).__init__)
    assert all(layer.config is config for layer in model.layers)


@pytest.mark.usefixtures("vllm")
def test_another_architecture_is_refused_when_vllm_looks_at_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "per-layer")
    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    for method in (registry.inspect_model_cls, registry.resolve_model_cls):
        with pytest.raises(
            CheckpointError,
            match=r"Mixtral.* not for HunYuanMoEV1ForCausalLM.*--model-impl transformers.*--layout uniform",
        ):
            method(["HunYuanMoEV1ForCausalLM"], SimpleNamespace(hf_config=config))


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("setting", ["enable_expert_parallel", "enable_eplb"])
def test_expert_parallelism_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(SettingError, match=r"leave out --enable-expert-parallel.*--tensor-parallel-size"):
        built(config_of(tmp_path, "mixtral", "per-layer"), **{setting: True})


@pytest.mark.usefixtures("vllm")
def test_speculative_decoding_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "per-layer")
    built(config)
    current = importlib.import_module("vllm.config").current
    current.speculative_config = SimpleNamespace(method="eagle")
    layer = importlib.import_module("vllm.model_executor.models.mixtral").MixtralDecoderLayer
    with pytest.raises(SettingError, match="leave out --speculative-config"):
        layer(config, prefix="model.layers.0")


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("version", "warns"),
    [("0.32.0", False), ("0.33.2rc1", False), ("0.34.0", True), ("0.31.9", True), ("dev", True)],
)
def test_another_version_is_told_the_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str, warns: bool
) -> None:
    sys.modules["vllm"].__version__ = version  # type: ignore[attr-defined]
    built(config_of(tmp_path, "mixtral", "per-layer"))
    assert (f"vLLM >=0.32,<0.34; this is {version}" in caplog.text) is warns


@pytest.mark.parametrize("gone", ["get_per_layer_hf_configs", "the module"])
def test_a_vllm_that_is_built_otherwise_is_left_as_it_is(
    vllm: Path, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    file = vllm / "vllm" / "transformers_utils" / "model_arch_config_convertor.py"
    if gone == "the module":
        file.unlink()
    else:
        file.write_text(file.read_text().replace(gone, "of_another_name"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    plug_in.register()
    registry = type(importlib.import_module("vllm.model_executor.models.registry").ModelRegistry)
    assert not is_ours(registry.resolve_model_cls)
    assert "plug-in for unequal layers is off: it is for vLLM >=0.32,<0.34" in caplog.text


@pytest.mark.usefixtures("vllm")
def test_only_configs_of_deepseeks_attention_are_read_as_one(tmp_path: Path) -> None:
    convertor = importlib.import_module("vllm.transformers_utils.model_arch_config_convertor")
    mixtral, deepseek = (config_of(tmp_path / each, each, "per-layer") for each in ("mixtral", "deepseek_v2"))
    configs = convertor.ModelArchConfigConvertorBase(mixtral).get_per_layer_hf_configs()
    assert [config.num_local_experts for config in configs] == COUNTS
    assert convertor.ModelArchConfigConvertorBase(deepseek).get_per_layer_hf_configs() is None
    assert deepseek.n_routed_experts == 6


def test_vllm_finds_the_plug_in() -> None:
    found = [each for each in entry_points(group="vllm.general_plugins") if each.name == "moeits"]
    if not found:
        pytest.skip("moeits was installed here before it had a plug-in: pip install -e .")
    assert found[0].load() is plug_in.register


def test_the_look_at_the_sources_says_what_is_missing(vllm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vllm_sources.main(vllm) == 1
    said = capsys.readouterr().out
    assert "MixtralForCausalLM (mixtral.MixtralDecoderLayer): as it should be" in said
    assert "what serves models of transformers: as it should be" in said
    assert "OlmoeForCausalLM (olmoe.OlmoeDecoderLayer): the registry does not have it in this module" in said
    module = vllm / "vllm" / "model_executor" / "models" / "mixtral.py"
    module.write_text(module.read_text().replace("num_local_experts", "experts"))
    vllm_sources.main(vllm)
    assert "(mixtral.MixtralDecoderLayer): no num_local_experts is read" in capsys.readouterr().out
    backend = vllm / "vllm" / "model_executor" / "models" / "transformers" / "moe.py"
    backend.write_text(backend.read_text().replace("FusedMoEFactory", "Factory"))
    vllm_sources.main(vllm)
    assert "what serves models of transformers: no FusedMoEFactory is called" in capsys.readouterr().out
    assert vllm_sources.main(vllm / "nowhere") == 2


def test_the_sources_of_an_installed_vllm_are_as_the_plug_in_takes_them() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed here: python scripts/vllm_sources.py FOLDER looks at an unzipped wheel")
    assert vllm_sources.main(Path(spec.origin).parents[1]) == 0
