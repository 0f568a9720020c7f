"""Train fusers and translators from data.

callbacks    Callbacks of a training: progress, the log file, trackers
checkpoint   Checkpoints: write, verify, restore
data/        Training examples: recipes' `data`, reading, encoding, sampling
default      Default training recipe for an edge of a graph
dev_eval     Dev evaluation that chooses the best checkpoint
load         Load and check training recipes
loop         The training loop
loss         Loss terms
networks/    Learners: fusers and translators in training, and their closed-form starts
note_rows    Add the hashes of its training examples to an older fuser's card
output_path  Output folder of the trained fuser
pair         The trained edge's two agents with their models
plan         Estimate of a training from a few trial steps
prefill      Prefill by the frozen models, and an LRU cache of the results
processes    Processes of one training: errors that end all, values that the main one decides
publish      Write the best checkpoint as a finished fuser
run_lock     Lock of the checkpoint folder
spec         Training recipes as typed values
train        `train`: from a recipe to a fuser with a card
"""
