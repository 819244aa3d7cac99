"""What an evaluation would take: tokens of a text are counted, those of tasks are not known before their data are."""

from moeits.checkpoint.reading import Checkpoint
from moeits.evaluation.perplexity import MOST_LOGITS, Text, windows
from moeits.evaluation.settings import Inference, Questions
from moeits.foreseen import Work
from moeits.runtime import context_of, load_tokenizer, need, text_config
from moeits.timed_layers import NOT_TIMED, passes_of, weights_in

# A perplexity window is the model's context, but no longer than this unless asked for.
LONGEST_WINDOW = 2048


def evaluating(
    checkpoint: Checkpoint, questions: Questions, inference: Inference, text: Text | None, models: int = 1
) -> tuple[tuple[Work, ...], tuple[str, ...]]:
    """The work of one evaluation of a model, and what is not in it; with two `models` both read the text."""
    need("lm_eval.models.huggingface", extra="eval")  # every evaluation takes the time to import it
    untold = []
    if questions.names:
        untold.append(f"Tasks ({', '.join(questions.names)}): how long their prompts are is known when they are made.")
    if questions.generate is not None:
        untold.append(f"{questions.generate} answers: how long they become is known when they end.")
    if text is None:
        return (), tuple(untold)
    passes = passes_of(checkpoint, dtype=inference.dtype, device=inference.device)
    window = questions.window or min(context_of(checkpoint) or LONGEST_WINDOW, LONGEST_WINDOW)
    work, tokens = [], _tokens_of(checkpoint, text, window)
    if passes is None:
        untold.append(NOT_TIMED)
    seconds = None if passes is None else passes.seconds(sum(tokens))
    work.append(
        Work(what=f"{sum(tokens):,} tokens of {text.name} through the model", times=models, seconds_each=seconds)
    )
    return tuple(work), tuple(untold)


def _tokens_of(checkpoint: Checkpoint, text: Text, window: int) -> list[int]:
    """Tokens of every window of the text, with what stands before for context."""
    tokenizer = load_tokenizer(checkpoint)
    lengths = [1 + len(tokenizer.encode(each, add_special_tokens=False, verbose=False)) for each in text.documents]
    plan = (each for i, length in enumerate(lengths) for each in windows(i, length, window=window))
    return [each.end - each.begin for each in plan]


def held_by(checkpoint: Checkpoint, inference: Inference, text: Text | None, models: int) -> int:
    """About, of weights, and of the logits of a batch of a text three times over, in float32."""
    weights = models * weights_in(checkpoint, inference.dtype)
    vocabulary = text_config(checkpoint).get("vocab_size")
    if text is None or not isinstance(vocabulary, int):
        return weights
    # A token is hardly ever less than a byte.
    tokens = sum(len(document.encode()) for document in text.documents)
    return weights + 3 * 4 * models * min(MOST_LOGITS, tokens * vocabulary)
