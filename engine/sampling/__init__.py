"""From logits to tokens: sampling, grammars, JSON Schemas.

sampler         chooses the next tokens of all rows
reply           ReplyState: a reply's tokens and text, and the reason why it ends
grammar         masks tokens so that a reply follows a JSON schema
json_schema     checks which schemas replies can be held to, and makes grammars of them
closed_schema   narrows a schema so that what is written passes its check
finite_schema   finds schemas that no finite reply satisfies
text_formats    patterns and formats, as the grammars read them
"""
