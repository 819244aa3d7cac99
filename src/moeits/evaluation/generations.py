"""Whether a chat model still ends its answers: pruned ones often do not, and say the same thing for ever.

Each prompt is asked on its own, in the model's chat template, and answered greedily, so that the same model gives the
same answers. An answer ends if its last token is one that ends a turn. One that does not is a loop if its end repeats
itself: the last tokens are one passage at least three times over.
"""

from collections.abc import Sequence
from typing import Any

from moeits.errors import EvaluationError
from moeits.progress import Progress
from moeits.runtime import need

NEW_TOKENS = 256
# A passage of so many tokens at most, so often in a row; single tokens more often, for three dots are not a loop.
_LONGEST_PASSAGE, _TIMES, _OF_ONE_TOKEN = 64, 3, 8

PROMPTS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "Explain in one sentence why the sky is blue.",
    "Name three fruits.",
    "Translate 'good morning' into Spanish.",
    "How many legs has a spider?",
    "Give one reason to learn to cook.",
    "What comes after Tuesday?",
    "Describe a cat in ten words.",
    "What is 12 plus 30?",
    "Who wrote Hamlet?",
    "Tell me a very short story about a lost key.",
    "What is water made of?",
    "List two uses of a hammer.",
    "Say hello to a new neighbour.",
    "What is the opposite of cold?",
    "Why do leaves fall in autumn? One sentence.",
    "Give a short title for a book about bees.",
    "How do I boil an egg? Two sentences.",
    "What colour do blue and yellow make?",
    "Is the moon larger than the earth?",
    "Write a polite sentence that declines an invitation.",
    "Name a river in Africa.",
    "What does a librarian do?",
)


def generations_of(model: Any, tokenizer: Any, prompts: int, progress: Progress) -> dict[str, Any]:
    """The row of the answers in the results, and one sample for each.

    Raises EvaluationError for a tokenizer without a chat template, or without a token that ends a turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise EvaluationError("--generate is for chat models, and this tokenizer has no chat template. Leave it out.")
    ends = _ends(model, tokenizer)
    asked = PROMPTS[:prompts]
    samples: dict[str, list[int]] = {"tokens": [], "ended": [], "looped": []}
    for done, prompt in enumerate(asked, 1):
        answer = _answer(model, tokenizer, prompt, ends)
        ended = bool(answer) and answer[-1] in ends
        samples["tokens"].append(len(answer))
        samples["ended"].append(int(ended))
        samples["looped"].append(int(not ended and loops(answer)))
        progress("answers", done, len(asked))
    shares = {name: sum(samples[name]) / len(asked) for name in ("ended", "looped")}
    return {"row": {"prompts": len(asked), "new_tokens": NEW_TOKENS, **shares}, "samples": samples}


def loops(tokens: Sequence[int]) -> bool:
    """Whether the end is one passage over and over."""
    for length in range(1, _LONGEST_PASSAGE + 1):
        times = _OF_ONE_TOKEN if length == 1 else _TIMES
        end = list(tokens[-length * times :])
        if len(end) == length * times and end == end[:length] * times:
            return True
    return False


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a turn, as the model's generation config has them, else the tokenizer."""
    said = getattr(model.generation_config, "eos_token_id", None)
    found = [said] if isinstance(said, int) else list(said or [])
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    if not found:
        raise EvaluationError(
            "Neither the model nor its tokenizer has a token that ends an answer. Leave --generate out."
        )
    return sorted(set(found))


def _answer(model: Any, tokenizer: Any, prompt: str, ends: list[int]) -> list[int]:
    torch = need("torch", extra="load")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    answer: list[int] = out[0, ids.shape[1] :].tolist()
    return answer
