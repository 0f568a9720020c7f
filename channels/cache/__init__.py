"""The cache channel: align, rotate, fuse, graft, translate.

align           Which sharer token stands for which receiver token
apply_fuser     Correcting a receiver's cache with what its sharers know, layer by layer
edge_plan       What a cache edge will do in every run, decided once both models are known
fused_decode    Decoding with sharers that read along
fused_prefill   Reading a prompt together
graft           Putting KV that a sender computed into a receiver's row, at the receiver's own positions
layer_map       Which sharer layer corrects which receiver layer
residual_norms  How large a fuser's corrections are beside what they correct
sent_cache      What a sender's cache holds, entry by entry
shared_prompt   How receiver and sharers read one prompt
stream_layers   Correcting a receiver's cache while its sharers, on other devices, still read
translate       A sharer's entries as the receiver's own, where the two are different models
"""
