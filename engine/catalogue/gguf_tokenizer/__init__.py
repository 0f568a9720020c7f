"""The tokenizer of a GGUF file. Such a file holds the vocabulary, and the rule that cuts texts only by name.

build           reads a tokenizer, and saves it
vocabulary      tokens, their kinds, and those with a name
byte_level      byte-level tokenizers (`gpt2`), built from the file's metadata
sentencepiece   SentencePiece tokenizers (`llama`): transformers' reading, completed
split_rules     the table of rules, by the names that files give them
"""

from .build import read_tokenizer, save_tokenizer

__all__ = ["read_tokenizer", "save_tokenizer"]
