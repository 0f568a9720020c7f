"""Evaluation: compare the variants of one graph on a user's own data, with controls.

compare       The comparison itself
comparison    What a comparison found
derangement   Who gets whose cache in the mismatched control
environment   On what a comparison ran
evidence      From a comparison to evidence on a fuser's card
harness/      Recipes as models of the Language Model Evaluation Harness
metrics       What makes a reply, or a choice, good
peak_memory   The most memory that was held while something ran, seen by looking often
records       What one example gave in one variant
report/       A comparison as one HTML file that needs nothing else
results_file  The results file
run_example   One example, once
run_variants  Playing every example of every variant, some at a time, each result kept as soon as it is there
stats         Intervals and p-values for paired examples
summary       From records to rows and differences
table         A comparison for a terminal
task          What a comparison is asked to do, checked as far as that goes without a model
variants      The ways in which one graph is run on the same examples
verdict       What the numbers say, in words, and no more than they say
warnings      What makes a comparison doubtful
"""
