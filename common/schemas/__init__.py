"""Untrusted JSON Schemas and values: no network, no files, bounded work.

budget.py     work limits of checks
patterns.py   regular expressions in linear time
keywords.py   jsonschema's keywords, each charged to a budget
flaws.py      flaws that make a schema unusable, found when it is read
check.py      mismatches between a value and a schema
"""

from .budget import CheckGroup, TooMuchWork
from .check import TextReader, find_mismatch
from .flaws import SchemaFlaw, find_schema_flaw, find_size_flaw

__all__ = [
    "CheckGroup",
    "SchemaFlaw",
    "TextReader",
    "TooMuchWork",
    "find_mismatch",
    "find_schema_flaw",
    "find_size_flaw",
]
