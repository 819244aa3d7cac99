"""The plug-in for SGLang, against a small package of the same names and signatures; SGLang itself needs a GPU.

What real versions have is read from their sources (`scripts/sglang_sources.py`), here where SGLang is installed, and
their own classes were filled without a GPU (`scripts/sglang_loads.py`).
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
from moeits.servers import sglang as plug_in
from moeits.servers.unequal import is_ours

from .toys import make_toy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import sglang_sources  # noqa: E402

KEPT = {0: (0, 2, 5), 1: (3,), 2: (0, 1, 2, 4, 5)}
COUNTS, TOP_K = [3, 1, 5], [2, 1, 2]

STAND_IN = {
    "version.py": '__version__ = "0.5.23"\n',
    "srt/plugins/__init__.py": 'GENERAL_PLUGINS_GROUP = "sglang.srt.plugins"\n',
    "srt/plugins/hook_registry.py": """
import functools
import pkgutil
from enum import Enum


class HookType(Enum):
    AROUND = "around"
    BEFORE = "before"
    AFTER = "after"


class HookRegistry:
    asked = []

    @classmethod
    def register(cls, target, hook, hook_type=HookType.AFTER):
        cls.asked.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls):
        for target, hook, hook_type in cls.asked:
            module, _, name = target.rpartition(".")
            holder = pkgutil.resolve_name(module)
            setattr(holder, name, wrapped(getattr(holder, name), hook, hook_type))


def wrapped(function, hook, hook_type):
    @functools.wraps(function)
    def call(*args, **kwargs):
        if hook_type is HookType.AROUND:
            return hook(function, *args, **kwargs)
        if hook_type is HookType.BEFORE:
            args, kwargs = hook(*args, **kwargs) or (args, kwargs)
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        changed = hook(result, *args, **kwargs)
        return result if changed is None else changed

    return call
""",
    "srt/runtime_context.py": """
from types import SimpleNamespace

parallel = SimpleNamespace(moe_ep_size=1)
moe = SimpleNamespace(enable_eplb=False, ep_num_redundant_experts=0)


def get_parallel():
    return parallel


def get_exec():
    return SimpleNamespace(moe=moe)
""",
    "srt/configs/qwen3_next.py": """
class Qwen3NextConfig:
    def __init__(self, num_hidden_layers=4, **kwargs):
        for key, value in kwargs.items():
            setattr(self, key, value)
        self.num_hidden_layers = num_hidden_layers

    @property
    def per_layer_config(self):
        return self.of_layers

    @per_layer_config.setter
    def per_layer_config(self, of_layers):
        # As transformers checks that there are such layers.
        assert all(int(layer) < self.num_hidden_layers for layer in of_layers)
        self.of_layers = of_layers
""",
    "srt/utils/hf_transformers/common.py": """
def get_hf_text_config(config):
    # As the config parser goes through what a config has.
    return {key: getattr(config, key) for key in vars(config) if hasattr(config, key)} and config
""",
    "srt/model_loader/utils.py": """
import importlib

MODELS = {
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "MixtralForCausalLM": "mixtral",
    "Qwen3NextForCausalLM": "qwen3_next",
    "HunYuanMoEV1ForCausalLM": "mixtral",
}


def get_model_architecture(model_config):
    (architecture,) = model_config.hf_config.architectures
    return importlib.import_module(f"sglang.srt.models.{MODELS[architecture]}").Model, architecture
""",
    "srt/layers/moe/utils.py": """
from dataclasses import dataclass


@dataclass(frozen=True)
class SharedExpertsConfig:
    fusion_disabled: bool = False
    num_fused_shared_experts: int = 0


def resolve_shared_experts_config(model_class, hf_config, quant_config):
    return SharedExpertsConfig(num_fused_shared_experts=getattr(hf_config, "n_shared_experts", None) or 0)
""",
    "srt/models/mixtral.py": """
class MixtralDecoderLayer:
    def __init__(self, config, layer_id=0, quant_config=None, prefix=""):
        self.config, self.experts, self.top_k = config, config.num_local_experts, config.num_experts_per_tok


class Model:
    def __init__(self, config):
        self.layers = [MixtralDecoderLayer(config=config, layer_id=i) for i in range(config.num_hidden_layers)]
        self.most = config.num_local_experts


class MixtralForCausalLM(Model):
    pass


EntryClass = MixtralForCausalLM
""",
    "srt/models/deepseek_v2.py": """
class DeepseekV2DecoderLayer:
    def __init__(self, config, layer_id, quant_config=None, is_nextn=False, prefix=""):
        self.config, self.experts, self.top_k = config, config.n_routed_experts, config.num_experts_per_tok


class Model:
    def __init__(self, config):
        self.layers = [DeepseekV2DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        self.most = config.n_routed_experts
""",
    "srt/models/qwen2_moe.py": """
def can_fuse_shared_expert(config, quant_config):
    return True


class SparseMoeBlock:
    def __init__(self, config):
        self.fused, self.experts = can_fuse_shared_expert(config, None), config.num_experts
""",
    "srt/models/qwen3_next.py": """
from sglang.srt.models.qwen2_moe import SparseMoeBlock


class Qwen3HybridLinearDecoderLayer:
    def __init__(self, config, layer_id, quant_config=None, prefix="", is_nextn=False):
        self.config, self.mlp, self.top_k = config, SparseMoeBlock(config), config.num_experts_per_tok
        self.experts = self.mlp.experts


class Qwen3HybridAttentionDecoderLayer(Qwen3HybridLinearDecoderLayer):
    def __init__(self, config, layer_id, quant_config=None, prefix="", is_nextn=False):
        super().__init__(config, layer_id)


class Model:
    def __init__(self, config):
        kinds = {"linear_attention": Qwen3HybridLinearDecoderLayer, "full_attention": Qwen3HybridAttentionDecoderLayer}
        self.layers = [kinds[kind](config, i) for i, kind in enumerate(config.layer_types)]
        self.most = config.num_experts
""",
}


def forget() -> dict[str, Any]:
    """Take SGLang out of the imported modules; what was there."""
    found = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "sglang"}
    for name in found:
        del sys.modules[name]
    return found


@pytest.fixture
def sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, importable, with the plug-in on; the folder that holds it."""
    before = forget()
    folder = tmp_path / "site"
    for file, source in STAND_IN.items():
        for package in (Path(file).parent, *Path(file).parent.parents):
            (folder / "sglang" / package).mkdir(parents=True, exist_ok=True)
            (folder / "sglang" / package / "__init__.py").touch()
        (folder / "sglang" / file).write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    started()
    yield folder
    forget()
    sys.modules.update(before)


def started() -> None:
    """As SGLang loads its plug-ins, and once more."""
    plug_in.register()
    plug_in.register()
    registry = module("plugins.hook_registry").HookRegistry
    assert len(registry.asked) in {0, len(plug_in.HOOKS)}
    registry.apply_hooks()


def module(name: str) -> Any:
    return importlib.import_module(f"sglang.srt.{name}")


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


def built(config: Any, **settings: Any) -> Any:
    """The model that SGLang would build of a config, with these settings of its server."""
    context = module("runtime_context")
    context.parallel.moe_ep_size = settings.pop("moe_ep_size", 1)
    context.moe.__dict__.update(settings)
    assert module("utils.hf_transformers.common").get_hf_text_config(config) is config
    model_class, _ = module("model_loader.utils").get_model_architecture(SimpleNamespace(hf_config=config))
    model = model_class(config)
    model.shared = module("layers.moe.utils").resolve_shared_experts_config(model_class, config, None)
    return model


@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v2", "qwen3_next"])
def test_each_layer_has_its_own_count_and_choice(tmp_path: Path, model_type: str) -> None:
    model = built(config_of(tmp_path, model_type, "per-layer"))
    assert [layer.experts for layer in model.layers] == COUNTS
    assert [layer.top_k for layer in model.layers] == TOP_K
    assert model.most >= max(COUNTS)


@pytest.mark.usefixtures("sglang")
def test_without_the_plug_in_the_config_cannot_be_gone_through(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "per-layer")
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        module("utils.hf_transformers.common").get_hf_text_config.__wrapped__(config)
    config.allow_global_per_layer_attribute_access = True
    assert [layer.experts for layer in module("models.mixtral").Model(config).layers] == [6, 6, 6]


@pytest.mark.usefixtures("sglang")
def test_a_config_class_of_sglangs_own_takes_layers_that_differ() -> None:
    own = module("configs.qwen3_next").Qwen3NextConfig
    assert own(num_hidden_layers=2, per_layer_config={"1": {"num_experts": 3}}).of_layers == {"1": {"num_experts": 3}}
    assert not hasattr(own(num_hidden_layers=2), "of_layers")
    with pytest.raises(AttributeError):
        own.__init__.__wrapped__(own.__new__(own), per_layer_config={"1": {}})


@pytest.mark.usefixtures("sglang")
def test_a_shared_expert_stays_apart_where_layers_differ_and_only_there(tmp_path: Path) -> None:
    deepseek = config_of(tmp_path / "deepseek", "deepseek_v2", "per-layer")
    assert built(deepseek).shared == module("layers.moe.utils").SharedExpertsConfig(fusion_disabled=True)
    qwen = built(config_of(tmp_path / "qwen", "qwen3_next", "per-layer"))
    assert [layer.mlp.fused for layer in qwen.layers] == [False, False, False]
    even = config_of(tmp_path / "deepseek", "deepseek_v2", "uniform")
    assert built(even).shared.num_fused_shared_experts == even.n_shared_experts > 0
    assert all(layer.mlp.fused for layer in built(config_of(tmp_path / "qwen", "qwen3_next", "uniform")).layers)


@pytest.mark.usefixtures("sglang")
def test_a_uniform_checkpoint_is_not_touched_before_or_after_an_unequal_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "uniform")
    model = built(config, moe_ep_size=2)
    assert not is_ours(type(model.layers[0]).__init__)
    built(config_of(tmp_path, "mixtral", "per-layer"))
    model = built(config, moe_ep_size=2)
    assert is_ours(type(model.layers[0]).__init__)
    assert [layer.experts for layer in model.layers] == [4, 4, 4]
    assert all(layer.config is config for layer in model.layers)


@pytest.mark.usefixtures("sglang")
def test_another_architecture_is_refused_when_sglang_looks_at_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mixtral", "per-layer")
    config.architectures = ["HunYuanMoEV1ForCausalLM"]
    said = r"MixtralForCausalLM.* not for HunYuanMoEV1ForCausalLM.*--layout uniform"
    with pytest.raises(CheckpointError, match=said):
        module("utils.hf_transformers.common").get_hf_text_config(config)
    with pytest.raises(CheckpointError, match=said):
        module("model_loader.utils").get_model_architecture(SimpleNamespace(hf_config=config))


@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize("setting", [{"moe_ep_size": 2}, {"enable_eplb": True}, {"ep_num_redundant_experts": 1}])
def test_expert_parallelism_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"leave out --ep-size, --enable-eplb.*--tp-size"):
        built(config_of(tmp_path, "mixtral", "per-layer"), **setting)


@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize(
    ("version", "warns"),
    [("0.5.23", False), ("0.5.23.post1", False), ("0.5.24", True), ("0.5.9", True), ("0.6", True), ("dev", True)],
)
def test_another_version_is_told_the_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str, warns: bool
) -> None:
    importlib.import_module("sglang.version").__version__ = version  # type: ignore[attr-defined]
    built(config_of(tmp_path, "mixtral", "per-layer"))
    assert (f"SGLang >=0.5.23,<0.5.24; this is {version}" in caplog.text) is warns


@pytest.mark.parametrize("gone", ["resolve_shared_experts_config", "the plug-ins"])
def test_a_sglang_that_is_built_otherwise_is_left_as_it_is(
    sglang: Path, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    if gone == "the plug-ins":
        (sglang / "sglang" / "srt" / "plugins" / "hook_registry.py").unlink()
    else:
        file = sglang / "sglang" / "srt" / "layers" / "moe" / "utils.py"
        file.write_text(file.read_text().replace(gone, "of_another_name"))
    forget()
    importlib.invalidate_caches()
    plug_in.register()
    if gone != "the plug-ins":
        assert not module("plugins.hook_registry").HookRegistry.asked
    assert "plug-in for unequal layers is off: it is for SGLang >=0.5.23,<0.5.24" in caplog.text


def test_sglang_finds_the_plug_in() -> None:
    found = [each for each in entry_points(group="sglang.srt.plugins") if each.name == "moeits"]
    if not found:
        pytest.skip("moeits was installed here before it had a plug-in: pip install -e .")
    assert found[0].load() is plug_in.register


def test_the_look_at_the_sources_says_what_is_missing(sglang: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sglang_sources.main(sglang) == 1
    said = capsys.readouterr().out
    assert "get_model_architecture: as it should be" in said
    assert "MixtralForCausalLM (mixtral): as it should be" in said
    assert "OlmoeForCausalLM (olmoe): this module does not have it" in said
    file = sglang / "sglang" / "srt" / "models" / "mixtral.py"
    file.write_text(file.read_text().replace("num_local_experts", "experts"))
    sglang_sources.main(sglang)
    assert "MixtralForCausalLM (mixtral): no num_local_experts is read" in capsys.readouterr().out
    assert sglang_sources.main(sglang / "nowhere") == 2


def test_the_sources_of_an_installed_sglang_are_as_the_plug_in_takes_them() -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        pytest.skip("SGLang is not installed here: python scripts/sglang_sources.py FOLDER looks at an unzipped wheel")
    assert sglang_sources.main(Path(spec.origin).parents[1]) == 0
