"""Learners: fusers and translators in training, and their closed-form starts.

create         Create the learner of a training recipe
fuse           A fuser in training
graft          A translator in training
joint          A translator and a fuser in training for one edge
learner        `Learner`, the interface of all of them
prefix         A trained prefix of the receiver, the tuned control
prompt_caches  Both models' prefilled prompts of a fuser in training
reply_ridge    Ridge start of a bottleneck fuser, from the sharer's cache to the reply
ridge          Ridge start of a translator, from the sharer's cache to the receiver's
start          Start of a translator from the weights of a trained one
"""
