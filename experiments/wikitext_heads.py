"""The beginnings of WikiText-2's articles as a text that judges: a line of JSON for each article.

    python -m experiments.wikitext_heads > wikitext.jsonl
    moeits evaluate MODEL --perplexity wikitext.jsonl --dtype float32 --output results.json

The first 1,000 characters of each article of ../shared/data/wikitext2/test.txt without its title, as ordinary text
again (docs/validity.md judges SmolLM2 by it).
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

TEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2" / "test.txt"
CHARACTERS = 1000
_TITLE = re.compile(r"^ = [^=].* = $")


def plain(line: str) -> str:
    """A line of the tokenised form with its spaces and signs where a writer has them."""
    line = re.sub(r" @([-,.])@ ", r"\1", line)
    line = re.sub(r" ([,.;:?!%)\]]|'s|n't|'re|'ve|'ll|'d|'m)(?=\s|$)", r"\1", line)
    line = re.sub(r"([(\[$]) ", r"\1", line)
    return re.sub(r'" ([^"]*) "', r'"\1"', line).strip()


def articles(text: str) -> Iterator[str]:
    """The paragraphs of each article, without titles."""
    paragraphs: list[str] = []
    for line in text.splitlines():
        if _TITLE.match(line) and not line.startswith(" = = "):
            if paragraphs:
                yield "\n".join(paragraphs)
            paragraphs = []
        elif line.strip() and not line.startswith(" ="):
            paragraphs.append(plain(line))
    if paragraphs:
        yield "\n".join(paragraphs)


def documents(text: Path = TEXT) -> Iterator[str]:
    """A line of JSON for each article."""
    for article in articles(text.read_text(encoding="utf-8")):
        yield json.dumps({"text": article[:CHARACTERS]}, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    asked = parser.parse_args(argv)
    for document in documents(asked.text):
        print(document)


if __name__ == "__main__":
    main()
