"""What learns: fusers, translators, and their closed-form start.

create          From a training recipe and two models to what learns
fuse            A fuser in training
graft           A translator in training
joint           A translator and a fuser in training for one edge
learner         What learns
prompt_caches   Both models' caches of a fuser's prompts, computed once
reply_ridge     The closed-form start of a bottleneck fuser
ridge           The closed-form start of a translator
"""
