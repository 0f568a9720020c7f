"""Values and JSON Schemas of strangers: no network, no files, bounded work.

patterns.py   regular expressions in linear time
keywords.py   jsonschema's keywords, each paid from a budget
flaws.py      why a schema can't be used, found when it is read
check.py      why a value doesn't satisfy a schema
"""

from .check import TextReader, find_mismatch
from .flaws import SchemaFlaw, find_schema_flaw, find_size_flaw

__all__ = ["SchemaFlaw", "TextReader", "find_mismatch", "find_schema_flaw", "find_size_flaw"]
