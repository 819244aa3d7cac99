"""Where foreign checkpoints meet torch and transformers: a model, a tokenizer, or one sentence why not."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from moeits.checkpoint import hub
from moeits.checkpoint.opening import Describing
from moeits.checkpoint.reading import Checkpoint, read_json
from moeits.checkpoint.streamed import Streamed
from moeits.errors import CheckpointError, MoeitsError, SettingError
from moeits.experts.families import auto_class_of, check_stock_class, known_family
from moeits.experts.promises import needs_loader
from moeits.extras import need
from moeits.surgery.pruned_config import class_name

# What a model may be loaded in; auto is what its files have.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(path: str | Path, **kwargs: Any) -> Any:
    """The stock transformers model of a checkpoint, whether its layers keep equal counts or not.

    `path` is a folder, or a hub id (with `revision`); `architecture` is a description of its family, where moeits has
    none. Other keyword arguments (dtype, device_map, ...) go to `from_pretrained`. Code that a checkpoint brings along
    is never run, so `trust_remote_code` is no argument. Raises MissingExtra without torch and transformers,
    CheckpointError if transformers cannot open it, FamilyError, SettingError.
    """
    if "trust_remote_code" in kwargs:
        raise SettingError("moeits.load runs no code of a checkpoint, so leave trust_remote_code out.")
    need("torch", extra="load")
    revision, architecture = kwargs.pop("revision", None), kwargs.pop("architecture", None)
    if Path(path).is_dir() and revision is not None:
        raise SettingError(
            f"The revision {revision} is of models on the hub, and {path} is a folder here. Leave it out."
        )
    folder = Path(path) if Path(path).is_dir() else hub.download(str(path), revision)[0]
    config = Describing(architecture=architecture).describe()(read_json(folder / "config.json"))
    with refusals_as_sentences(f"The model {path}"):
        return _from_pretrained(folder, config, str(path), kwargs)


def load_opened(checkpoint: Checkpoint, **kwargs: Any) -> Any:
    """The stock model of an opened checkpoint, by what is known of its family. Raises what `load` raises."""
    need("torch", extra="load")
    if isinstance(checkpoint, Streamed):
        raise SettingError(
            f"This loads {checkpoint.source} whole, for which it must be downloaded. Leave --stream out."
        )
    with refusals_as_sentences(f"The model {checkpoint.source}"):
        return _from_pretrained(checkpoint.folder, checkpoint.config, checkpoint.source, kwargs)


def _from_pretrained(folder: Path, config: Mapping[str, Any], name: str, kwargs: dict[str, Any]) -> Any:
    """The model, every weight of which was read. Raises CheckpointError if transformers made some up."""
    wants_facts = kwargs.pop("output_loading_info", False)
    model, facts = _class_of(config, name).from_pretrained(folder, output_loading_info=True, **kwargs)
    if missing := sorted(facts["missing_keys"]):
        raise CheckpointError(
            f"{name} lacks {len(missing)} weights that its config.json asks for ({missing[0]:.80}, ...); transformers "
            "would fill them with random numbers. Compare its config.json with that of the original model."
        )
    return (model, facts) if wants_facts else model


def _class_of(config: Mapping[str, Any], name: str) -> Any:
    """What opens a checkpoint: the stock class, or one derived from it where layers keep different counts."""
    check_stock_class(config, name)
    transformers = need("transformers", extra="load")
    if not needs_loader(config):
        return getattr(transformers, auto_class_of(config))
    from moeits.modeling_moeits import per_layer_class

    stock_name = class_name(config)
    stock = getattr(transformers, stock_name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"This transformers has no model class {stock_name}, which {name} was made for. Update transformers."
        )
    return per_layer_class(stock)


def load_checked(checkpoint: Checkpoint, **kwargs: Any) -> Any:
    """The model of a checkpoint, once it has read two tokens. Raises CheckpointError, in a sentence, if it cannot.

    A config.json can hold values that are noticed only when the model is run.
    """
    torch = need("torch", extra="load")
    _check_number_of_layers(checkpoint)
    model = load_opened(checkpoint, **kwargs)
    with refusals_as_sentences(f"The model {checkpoint.source}"), torch.inference_mode():
        model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device), use_cache=False)
    return model


def _check_number_of_layers(checkpoint: Checkpoint) -> None:
    """The last layer of config.json has tensors: transformers would build thousands of layers before it missed them."""
    layers = text_config(checkpoint).get("num_hidden_layers")
    if isinstance(layers, int) and not any(f".{layers - 1}." in name for name in checkpoint.tensors):
        raise CheckpointError(
            f"config.json of {checkpoint.source} has num_hidden_layers {layers!r:.40}, but no tensor is of its last "
            "layer. Compare it with that of the original model."
        )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer, all of whose tokens the model has. Raises CheckpointError if there is none."""
    transformers = need("transformers", extra="load")
    # Without any file of it, transformers makes up an empty tokenizer of the model's class.
    if not any(path for pattern in ("tokenizer*", "vocab*", "*.model") for path in checkpoint.folder.glob(pattern)):
        raise CheckpointError(
            f"{checkpoint.source} has no tokenizer. Copy tokenizer.json and tokenizer_config.json of the model it was "
            "made from into its folder."
        )
    with refusals_as_sentences(f"The tokenizer of {checkpoint.source}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if not tokenizer("a", add_special_tokens=False, verbose=True)["input_ids"]:
            raise ValueError("it has not a single token")
        largest = max(tokenizer.get_vocab().values())
    vocabulary = text_config(checkpoint).get("vocab_size", largest + 1)
    if not isinstance(vocabulary, int) or largest >= vocabulary:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.source} has a token {largest}, but the model has {vocabulary!r:.40} tokens, "
            "counted from 0: they are not of one model. Copy the tokenizer of the model it was made from."
        )
    return tokenizer


def context_of(checkpoint: Checkpoint) -> int | None:
    """Tokens that the model reads at once; None where its config.json does not say. Raises CheckpointError."""
    context = text_config(checkpoint).get("max_position_embeddings")
    if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
        raise CheckpointError(
            f"config.json of {checkpoint.source} has max_position_embeddings {context!r:.40}, which is not a number of "
            "tokens. Compare it with that of the original model."
        )
    return context


def text_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config of the model that reads and writes text, which may be one of several."""
    family = known_family(checkpoint.config)
    if family is not None:
        return family.part_of(checkpoint.config)
    inner = checkpoint.config.get("text_config")
    return inner if isinstance(inner, Mapping) else checkpoint.config


@contextmanager
def refusals_as_sentences(what: str) -> Iterator[None]:
    """What transformers and torch raise about foreign files, in a sentence; they raise whatever comes their way."""
    try:
        yield
    except (MoeitsError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(
            f"{what} cannot be opened by transformers ({type(error).__name__}: {reason}). Compare its config.json and "
            "tokenizer files with those of the original model."
        ) from error


@contextmanager
def quiet(*others: str) -> Iterator[None]:
    """transformers and what is below it, and `others`, log errors only and draw no bars, until the end of the block.

    The library never prints, and progress has its own way.
    """
    bars = need("transformers", extra="load").utils.logging
    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate", *others)]
    with ExitStack() as restore:
        for logger in loggers:
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            restore.callback(bars.enable_progress_bar)
        yield


def processes() -> int:
    """How many processes share the work, as `accelerate launch` and torchrun say. Raises SettingError."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if not count.isdecimal() or int(count) < 1:
        raise SettingError(f"WORLD_SIZE={count} is not a number of processes, which is what a launcher sets it to.")
    return int(count)


def checked_dtype(name: str, known: tuple[str, ...] = DTYPES) -> str:
    """A dtype by name, if it is one that models can be run in. Raises SettingError."""
    if name not in known:
        raise SettingError(f"There is no dtype {name!r} here. Known: {', '.join(known)}.")
    return name
