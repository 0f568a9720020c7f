"""Recipes: YAML to a checked spec, and back. No torch.

check                Checks between the parts of a recipe
check_code           Checks of functions, programs and tools
check_flow           Checks of conditions, routes, joins, loops and lists
evaluate_spec        The `evaluate` section
includes             Recipes that a recipe includes
inputs               Check a run's inputs against their declarations
json_schema          The recipe's JSON Schema, for editors
load                 Read a recipe from YAML; every problem with its line and column
own_permissions      Permissions of a graph built in Python
presets              Fill in presets of endpoints
raw_spec             A recipe's raw data, before type validation
safety               Checks of addresses, keys and paths
single_braces        Names in single braces, which other template languages read
spec                 A recipe as typed values
spec_parts           Validate one part that Python code gives
swap_channels        Change the channels of edges, also inside included recipes
to_yaml              Write a recipe as YAML
validation_messages  pydantic errors as recipe problems with positions
yaml_positions       Parse YAML into values with line and column
yaml_syntax          Syntax errors of YAML in an author's terms
"""
