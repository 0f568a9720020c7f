"""What every folder may use: one thing a file.

addresses        Where a host's name leads, judged by addresses and not by spelling
atomic_write     Writing a file whole or not at all
file_lock        The only right of all processes to write a file, as long as it is open
folder_escapes   Links and names in a folder that lead out of the recipe's folder
json_cache       JSON values that are kept in the cache folder under the hash of all that they depend on
json_text        JSON from outside
paths            Where cachegraph keeps things
printable        Text of models, strangers and files, made safe for a screen
schemas/         Values and JSON Schemas of strangers
surrogates       Texts that are no Unicode
template_budget  What one rendering of a stranger's template may spend
"""
