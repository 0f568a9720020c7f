"""Function of longest-words.yaml; its parameter is the recipe's input of that name."""

import re


def longest(text: str) -> list[str]:
    """Return the five longest words."""
    return sorted(set(re.findall(r"\w+", text)), key=len, reverse=True)[:5]
