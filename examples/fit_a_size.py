"""The largest model that fits a size: pruned by reconstruction, refitted, opened, and asked to go on with a sentence.

python examples/fit_a_size.py MODEL 12GiB SMALLER
"""

import sys

from transformers import AutoTokenizer

import moeits


def main(model: str, size: str, output: str) -> None:
    """Prune, refit and generate. Weights alone are counted: leave room for the KV cache."""
    plan = moeits.simplify(model, max_size=size, criterion="reconstruction", refit=True, output=output)
    print(f"{plan.summary['experts_kept']} of {plan.summary['experts_before']} experts stay")

    smaller = moeits.load(output, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(output)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    print(tokenizer.decode(smaller.generate(**prompt, max_new_tokens=20)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:4])
