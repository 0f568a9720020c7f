"""The cache channel: align tokens, rotate keys, graft, translate, fuse.

align           Which sharer token corresponds to which receiver token
apply_fuser     Add a fuser's corrections to a receiver's keys and values
edge_plan       GraftPlan, FusePlan, JointPlan: what a cache edge does in every run
fused_decode    Decode while sharers correct every new position
fused_prefill   Prefill a prompt with sharers and correct the receiver's cache
graft           Move a sender's entries to the receiver's positions
prefix          Put a trained prefix in front of a prompt
residual_norms  How large a fuser's corrections are
sent_cache      SentCache: the cache that a sender hands over
shared_prompt   The tokens and positions of a prompt for receiver and sharers
stream_layers   Correct layer by layer while sharers on other devices compute
translate       Translate a sharer's entries for another model
"""
