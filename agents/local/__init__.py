"""Agents whose model runs on this machine: render, settle the edges, prefill, decode.

ablation       Controls that replace caches with wrong ones
agent          LocalAgent: one turn from deliveries to reply
align_prompt   How receiver and sharers read one prompt
decode         Decode a reply, and record whose text its entries are
graft          Take the grafts of one prompt
inbox          The payloads delivered for one turn, and their reports
memory         Earlier turns of a session in front of the prompt
prefill        Prefill a settled prompt
prompt_view    The view of a settled prompt, for people
render_prompt  Render and tokenize the prompt of one turn
row            AgentRow: computed entries, pending tokens, cost
score          Log probabilities of given replies
settle         Settle every edge before the prompt is computed
tool_loop      Decode, call tools, append their results, until a reply calls none
"""
