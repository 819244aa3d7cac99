"""The part of a model card that holds measured results: between two marks, so that it can be filled again."""

BEGIN, END = "<!-- moeits results: written by moeits report --card -->", "<!-- end of moeits results -->"


def results_slot(content: str) -> str:
    """The part of a card that holds measured results, or that there are none yet."""
    return f"{BEGIN}\n\n{content.strip()}\n\n{END}"


def with_results(card: str, results: str) -> str:
    """A card with results in its slot; at the end of a card that has none. Everything else stays as it is."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return before + results_slot(results) + after
    return f"{card.rstrip()}\n\n{results_slot(results)}\n"
