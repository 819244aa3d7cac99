"""moeits export: llama.cpp's converter is called, and what it cannot take is said before it is."""

import shutil
from pathlib import Path

import pytest

import moeits
from moeits.console.exports import show_export
from moeits.errors import CheckpointError, OutputError, SettingError
from tests.toys import make_toy

WRITES = """
import sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
open(given["--outfile"], "w").write(sys.argv[1] + " " + given["--outtype"])
"""
STOPS = "import sys\nprint('INFO:hf-to-gguf: begins', file=sys.stderr)\nsys.exit('Model Toy is not supported')\n"


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    moeits.simplify(make_toy(folder / "toy"), experts_per_layer=4, output=folder / "out", layout="uniform")
    return folder / "out"


def converter(folder: Path, program: str) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(program)
    return folder


def test_the_converter_of_a_folder_is_told_the_checkpoint_the_type_and_the_file(tmp_path: Path, uniform: Path) -> None:
    made = moeits.export(uniform, gguf=tmp_path / "a.gguf", outtype="f16", converter=converter(tmp_path / "l", WRITES))
    assert (tmp_path / "a.gguf").read_text() == f"{uniform} f16"
    assert made.nbytes == (tmp_path / "a.gguf").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "l"], "nothing else is left"


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_a_router_that_llama_cpp_has_otherwise_is_said(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = make_toy(tmp_path / "toy", "deepseek_v2", topk_method=method, n_group=2, topk_group=1)
    by = converter(tmp_path / "l", WRITES)
    made = moeits.export(toy, gguf=tmp_path / "a.gguf", converter=by)
    show_export(made, {"gguf": "a.gguf"})
    assert ("caution: llama.cpp takes the groups" in capsys.readouterr().out) == (method != "greedy")


def test_the_converter_on_the_path_is_found(tmp_path: Path, uniform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (converter(tmp_path / "bin", WRITES) / "convert_hf_to_gguf.py").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    moeits.export(uniform, gguf=tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == f"{uniform} auto"


def test_without_a_converter_the_command_to_run_is_said(
    tmp_path: Path, uniform: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match=r"python llama.cpp/convert_hf_to_gguf.py .* --outfile .*a.gguf --outtype"):
        moeits.export(uniform, gguf=tmp_path / "a.gguf")
    with pytest.raises(SettingError, match=r"is neither convert_hf_to_gguf\.py nor a folder that has it"):
        moeits.export(uniform, gguf=tmp_path / "a.gguf", converter=tmp_path)


def test_unequal_layers_are_refused_with_the_layout_that_opens(tmp_path: Path) -> None:
    moeits.simplify(make_toy(tmp_path / "toy"), tau=0.5, output=tmp_path / "out", layout="per-layer")
    with pytest.raises(SettingError, match=r"prune again from its plan\.json with --layout uniform"):
        moeits.export(tmp_path / "out", gguf=tmp_path / "a.gguf", converter=converter(tmp_path / "l", WRITES))
    assert not (tmp_path / "a.gguf").exists()


def test_what_the_converter_says_last_is_said_and_nothing_is_left(tmp_path: Path, uniform: Path) -> None:
    with pytest.raises(OutputError, match=r"did not write .*a.gguf: Model Toy is not supported\.$"):
        moeits.export(uniform, gguf=tmp_path / "a.gguf", converter=converter(tmp_path / "l", STOPS))
    with pytest.raises(OutputError, match="it exits with 0 and says nothing"):
        moeits.export(uniform, gguf=tmp_path / "a.gguf", converter=converter(tmp_path / "quiet", ""))
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*"))


def test_a_file_that_is_there_is_replaced_on_request_only_and_a_checkpoints_never(
    tmp_path: Path, uniform: Path
) -> None:
    there, by = tmp_path / "a.gguf", converter(tmp_path / "l", WRITES)
    there.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        moeits.export(uniform, gguf=there, converter=by)
    moeits.export(uniform, gguf=there, converter=by, overwrite=True)
    assert there.read_text() != "mine"
    copied = shutil.copytree(uniform, tmp_path / "copy")
    with pytest.raises(OutputError):
        moeits.export(copied, gguf=copied / "model.safetensors", converter=by, overwrite=True)


def test_wrong_arguments_are_a_sentence(tmp_path: Path, uniform: Path) -> None:
    with pytest.raises(SettingError, match="--outtype q4 is not one of auto, f32"):
        moeits.export(uniform, gguf=tmp_path / "a.gguf", outtype="q4")
    with pytest.raises(CheckpointError, match="There is no folder org/name: export takes"):
        moeits.export("org/name", gguf=tmp_path / "a.gguf")
    with pytest.raises(CheckpointError):
        moeits.export(tmp_path, gguf=tmp_path / "a.gguf")
