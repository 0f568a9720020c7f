"""Building blocks for every folder, one per file. No torch.

abandoned_threads  Run work in a thread that a cancelled caller leaves behind
addresses          Hosts that lead to this machine or its networks, judged by address
atomic_write       Write a file whole or not at all
did_you_mean       Suggestions for unknown names
file_lock          Lock a file against other processes while it is open
folder_escapes     Paths that leave a folder, also through links
human              Numbers as people read them: bytes, counts and durations
jinja_guards       Guards and limits that the sandboxes of prompts and chat templates share
json_cache         JSON values in the cache folder, keyed by the hash of what they depend on
json_text          Parse and check JSON from outside
paths              Where cachegraph keeps its files
printable          Make text of models and files safe for a terminal
run_all            Run async calls concurrently: results in order, the first error unchanged
schemas/           JSON Schemas from outside, and values checked against them
stop_signals       Treat SIGTERM and SIGHUP as Ctrl-C; the exit code of a stopped process
surrogates         Mend text that is not valid Unicode
template_budget    Limits on the work of one template rendering
"""
