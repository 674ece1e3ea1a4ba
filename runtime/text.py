"""Text that others wrote, made safe to print: no control codes, no escape sequences, no bidi tricks."""

import unicodedata

# Control, format (bidi and zero-width marks among them), surrogate, private and unassigned characters.
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def printable(text: str) -> str:
    """Return a text without characters that steer a terminal or reorder a line; newlines stay."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in UNSAFE else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """Return a text as one printable line, its white space made single spaces."""
    return printable(" ".join(text.split()))
