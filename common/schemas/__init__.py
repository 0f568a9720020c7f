"""Values and JSON Schemas of strangers: no network, no files, bounded work.

budget.py     what checks may spend
patterns.py   regular expressions in linear time
keywords.py   jsonschema's keywords, each paid from a budget
flaws.py      why a schema can't be used, found when it is read
check.py      why a value doesn't satisfy a schema
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
