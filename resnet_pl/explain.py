"""What the parser says of a wrong configuration, in a line or two."""

from __future__ import annotations


def explain(message: str) -> str:
    """Shortens the parser's message."""
    return message
