"""What a refit holds: measured in a process of its own, as the allocator of torch is not Python's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moeits
from moeits.calibration.layered import LayeredModel
from moeits.calibration.settings import Machine, StageResources, Tokens
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError, MoeitsError
from moeits.experts.layout import MoELayout
from moeits.modeling_moeits import decoder_layers
from moeits.refitting import memory, requirements
from moeits.refitting.down_tensors import down_shape
from moeits.refitting.memory import held_bytes, least_bytes
from moeits.signals.settings import Resources
from moeits.sizes import parse_size
from tests.test_contract_wrappers import NOT_BY_LAYERS
from tests.toys import MODEL_TYPES, ONE_BY_ONE, fuse, make_toy, of_each_kind
from tests.wrappers import LIKE_THEIR_TEXT_MODEL, WRAPPERS, make_wrapper

RUN_BY_LAYERS = [
    pytest.param(family, marks=[pytest.mark.every_family] if family in LIKE_THEIR_TEXT_MODEL else [])
    for family in WRAPPERS
    if family not in NOT_BY_LAYERS
]

EXPERTS, WIDTH, HIDDEN, TOKENS, OTHERS = 8, 512, 64, 4096, 512
ROOM = 8 << 20

MEASURED = """
import json, sys, threading, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import torch
from moeits.calibration.activations import Activations
from moeits.refitting.features import Routed
from moeits.refitting import layer
from moeits.refitting.layer import LayerData, refit_layer

experts, width, hidden, others, tokens, room_bytes, folder = json.loads(sys.argv[1])
layer.solver_for = partial(layer.solver_for, most_at_once=0)
torch.manual_seed(0)
torch.set_num_threads(1)
stock = SimpleNamespace(
    gate_up_proj=torch.randn(experts, 2 * width, hidden) / 16, down_proj=torch.randn(experts, hidden, width) / 28,
    is_transposed=False, has_bias=False,
    _apply_gate=lambda wide: torch.nn.functional.silu(wide[:, :width]) * wide[:, width:],
)

def data(count):
    routed = Routed(hidden=torch.randn(count, hidden), chosen=torch.rand(count, experts).topk(2).indices,
                    gates=torch.full((count, 2), 0.5), weight=torch.ones(count))
    wanted = torch.randn(count, hidden)
    return LayerData(routed=routed, at_hand=wanted, back=wanted, source=torch.zeros(count, dtype=torch.long))

def held():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    while not done:
        peaks.append(held())
        time.sleep(0.002)

fit, judge, found = data(tokens), data(others), {}
torch.zeros(512, 512) @ torch.zeros(512, 512)
before, peaks, done = held(), [0], False
thread = threading.Thread(target=watch)
thread.start()
with Activations(most_bytes=room_bytes, beside=Path(folder)) as room:
    refit_layer(0, stock, fit, judge, drifts=(0.0, 1.0), largest_ridge=3.0, room=room,
                put=lambda e, down: found.update({e: float(down.sum())}))
    on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*.array"))
done = True
thread.join()
print(json.dumps([max(peaks) - before, on_disk]))
"""


def peak(room: int, folder: Path) -> tuple[int, int]:
    """Bytes of memory beyond what was there before, and bytes on disk."""
    asked = json.dumps([EXPERTS, WIDTH, HIDDEN, OTHERS, TOKENS, room, str(folder)])
    done = subprocess.run([sys.executable, "-c", MEASURED, asked], capture_output=True, text=True, check=True)
    rise, on_disk = json.loads(done.stdout)
    return rise, on_disk


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what is held")
def test_a_regression_holds_no_more_than_its_room_and_what_it_works_on(tmp_path: Path) -> None:
    allowed = ROOM + least_bytes(WIDTH, HIDDEN, TOKENS)
    in_memory, nothing = peak(1 << 40, tmp_path / "none")
    assert nothing == 0
    assert in_memory > 1.5 * allowed, "the case is too small to show anything"
    spilled, on_disk = peak(ROOM, tmp_path)
    assert on_disk > 4 * TOKENS**2
    assert spilled <= allowed


def bytes_of(module: torch.nn.Module) -> int:
    """Of all that is stored of it, each once."""
    return sum({value.data_ptr(): value.nbytes for value in module.state_dict().values()}.values())


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_the_weights_that_are_run_are_counted(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_toy(tmp_path / "toy", family))
    model = moeits.load(tmp_path / "toy", dtype=torch.float32)
    layers = [bytes_of(layer) for layer in decoder_layers(model, model.config.get_text_config(decoder=True))[1]]
    held = bytes_of(model) - sum(layers) + max(layers)
    counted = held_bytes(checkpoint, 0, refit=False)
    assert held <= counted <= 1.1 * held
    assert held_bytes(checkpoint, 1000, refit=True) > 1000 + 2 * counted


@pytest.mark.parametrize("family", RUN_BY_LAYERS)
def test_of_several_models_in_one_no_less_is_counted_than_text_goes_through(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_wrapper(tmp_path / "toy", family))
    assert down_shapes_are_as_read(checkpoint)
    model, layers = LayeredModel(checkpoint), []
    for i in range(len(model)):
        with model.layer(i) as live:
            layers.append(bytes_of(live.module))
    filled = {value.data_ptr(): value.nbytes for value in model.model.parameters() if not value.is_meta}
    assert sum(filled.values()) + max(layers) <= held_bytes(checkpoint, 0, refit=False)


def down_shapes_are_as_read(checkpoint: Checkpoint) -> bool:
    layout = MoELayout.of(checkpoint)
    return bool(layout.layers) and all(
        down_shape(checkpoint, layout, layer, 0) == layout.read(checkpoint, layer, 0, "down").shape
        for layer in layout.layers
    )


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_a_down_projection_leads_back_to_the_residual_stream_however_experts_are_stacked(
    family: str, tmp_path: Path
) -> None:
    assert down_shapes_are_as_read(Checkpoint.open(make_toy(tmp_path / "toy", family)))


@pytest.mark.parametrize("family", of_each_kind(ONE_BY_ONE))
def test_so_does_one_of_experts_that_were_fused_in_memory(family: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", family)
    assert down_shapes_are_as_read(Checkpoint.open(fuse(toy, tmp_path / "fused")))


REFITTING = {
    "simplify": {"reduction": 0.5, "criterion": "random", "refit": True},
    "forecast": {"reductions": "0.5"},
    "compare_criteria": {"criteria": "random"},
}


@pytest.mark.parametrize("verb", [*REFITTING, "refit"])
def test_every_verb_that_refits_says_the_same_before_any_token_is_made(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral")
    model, asked = toy, {**REFITTING.get(verb, {}), "output": tmp_path / "out"}
    if verb == "refit":
        model, asked = tmp_path / "pruned", {**asked, "parent": toy}
        moeits.simplify(toy, output=model, experts_per_layer=3)
    monkeypatch.setattr(memory, "_NOT_COUNTED", 0)
    for few, said in (({"memory": "1MiB"}, "--memory 1.0 MiB is too little"), ({"memory": "nothing"}, "--memory")):
        with pytest.raises(MoeitsError, match=f"^{said}"):
            getattr(moeits, verb)(model, tokens=1024, **few, **asked)
    monkeypatch.setattr(requirements, "TOKENS_OF_AN_EXPERT", 1000)
    with pytest.raises(CalibrationError, match=r"^1024 tokens are too few for a fit: give --tokens \d+ or more\."):
        getattr(moeits, verb)(model, tokens=1024, **asked)
    assert not list(tmp_path.glob("out*"))


def test_what_is_given_by_default_fits_an_expert_of_mixtral_as_it_is_and_is_the_same_for_every_verb() -> None:
    given = StageResources()
    assert (given.scoring, given.watching) == (Resources(), Machine())
    assert 2 * least_bytes(14336, 4096, Tokens().tokens) <= parse_size(given.watching.memory, "--memory")
    given = StageResources(memory="3GiB", threads=2)
    assert (given.scoring, given.watching) == (Resources(memory="3GiB", threads=2), Machine(memory="3GiB"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_memory_that_holds_no_expert_is_refused_with_one_that_would_do(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path / "as-it-comes", "mixtral")
    checkpoint = Checkpoint.open(fuse(toy, tmp_path / "toy") if fused else toy.rename(tmp_path / "toy"))
    hidden, width = (checkpoint.config[key] for key in ("hidden_size", "intermediate_size"))
    assert down_shape(checkpoint, MoELayout.of(checkpoint), 0, 0) == (hidden, width)
    monkeypatch.setattr(memory, "_NOT_COUNTED", 0)
    asked = {"output": tmp_path / "out", "reduction": 0.5, "criterion": "random", "refit": True, "tokens": 1024}
    with pytest.raises(CalibrationError, match=r"^--memory 1.0 MiB is too little to fit one expert .* Give .* or more"):
        moeits.simplify(tmp_path / "toy", memory="1MiB", **asked)
    assert not list(tmp_path.glob("out*"))
