"""Training: fusers and translators from data.

caches       What the frozen models make of prompts
checkpoint   Where a training stands, on disk
data/        Training data
default      A training recipe for an edge of a graph, where nobody has written one
dev_eval     How good a fuser is on dev rows
load         A training recipe from YAML, with everything that is wrong in it, each at its line and column
loop         The steps
loss         What is minimised, from the log-probabilities of each row's replies
networks/    What learns
note_rows    Give a fuser that was trained before cards kept them the rows of its training
output_path  Where the trained fuser goes
pair         The two ends of the edge that learns
plan         What a training will take
progress     Who follows a training
publish      The finished fuser
run_lock     One training at a time in a folder of checkpoints
spec         A training recipe as typed values
train        `train`
"""
