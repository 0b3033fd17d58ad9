"""Rules of form: how long a response is, and whether it ends as a sentence."""

END = (".", "!", "?", '."', '!"', '?"', ".)", "!)", "?)", "…")


def form(text: str, *, min_words: int, max_words: int, complete: bool) -> float:
    """1 for a text of min_words to max_words words, falling to 0 at none and at twice max_words; with `complete`,
    halved where it breaks off in mid-sentence."""
    words = len(text.split())
    length = words / min_words if words < min_words else max(0.0, 2 - max(1.0, words / max_words))
    return length * (0.5 if complete and not text.rstrip().endswith(END) else 1.0)
