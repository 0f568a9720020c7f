"""A function for longest-words.yaml: its parameter is an input of the recipe, by name."""

import re


def longest(text: str) -> list[str]:
    """The five longest words."""
    return sorted(set(re.findall(r"\w+", text)), key=len, reverse=True)[:5]
