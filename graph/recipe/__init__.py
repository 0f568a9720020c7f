"""Recipes: YAML to a checked spec, and back. No torch.

check                What must hold between the parts of a recipe
check_code           What a recipe may set in motion
check_flow           What must hold of a recipe's conditions, routes, joins, loops and lists
evaluate_spec        The comparison's slice of a recipe
includes             Recipes within recipes
inputs               What the caller gives to a run, checked against what the recipe declares; all complaints at o
json_schema          The recipe's JSON Schema, for editors that complete and check YAML while it is written
load                 A recipe from YAML, with all its problems at once, each at its line and column
own_permissions      What a graph may do that the caller's own code has built
raw_spec             A recipe as it was written, right or wrong
safety               What a stranger's recipe may not do
single_braces        Names in single braces
spec                 A recipe as typed values
to_yaml              A recipe back to YAML, the way a person would have written it
validation_messages  pydantic's complaints in our words, each at its place in the file
yaml_positions       YAML as data that knows where it was written
"""
