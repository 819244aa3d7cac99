"""Which files of a folder hold a checkpoint's tensors, and what to say where it is not so."""

from pathlib import Path

from moeits.checkpoint.parts import INDEX_NAME, SINGLE_NAME
from moeits.errors import CheckpointError

_LONGEST_FILE_NAME = 255


def check_names(files: list[str]) -> None:
    """The index names files of its own folder."""
    for file in files:
        # No file system of ours takes a longer name, and to ask one for it is an error of its own.
        if (
            Path(file).name != file
            or file in {"", ".", ".."}
            or len(file.encode(errors="replace")) > _LONGEST_FILE_NAME
        ):
            raise CheckpointError(
                f"{INDEX_NAME} names {file!r:.200}, which is not a plain file name of its folder. "
                "This index is not safe."
            )


def check_files(folder: Path, files: list[str], *, named_by: str) -> None:
    """The index names files of this folder, all of them are there, and no other shard is."""
    check_names(files)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(files)} shards are missing from {folder}: {_some(missing)}. Download them again."
        )
    extra = sorted(path.name for path in folder.glob("model*.safetensors") if path.name not in files)
    if extra:
        raise CheckpointError(
            f"{folder} holds {_some(extra)}, which {named_by} does not name. Remove what is left over from another "
            "version, or download the checkpoint again."
        )


def why_no_safetensors(folder: Path) -> str:
    """What is wrong with a folder that has neither an index nor a single file, as a message."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        return (
            f"{folder} has its weights only as pickles ({_some(pickles)}), which can run code when they are opened. "
            "Get the safetensors version, or convert once with transformers' save_pretrained."
        )
    if (folder / "adapter_model.safetensors").exists():
        return f"{folder} is a LoRA adapter, not a model. Merge it into its base model first."
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return (
            f"{folder} has shards ({_some(shards)}) but no {INDEX_NAME}. Download the checkpoint again, with its index."
        )
    return f"{folder} has neither {INDEX_NAME} nor {SINGLE_NAME}. Is this the folder of a Hugging Face checkpoint?"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
