"""Compare the variants of a graph on a user's data, with controls.

agreement         Agreement of the output agent's distributions over the choices with those over text
categories        Results by category: the values of one column of the data
compare           `compare` and `acompare`: run all variants and summarise
comparison        `Comparison`: the outcome, as a value that prints, saves and loads
comparison_parts  Its parts: estimates, differences, agreements, rows
cost/             A cost model of edges, from measured constants
derangement       Donors of the mismatched control: a seeded derangement of the examples
differences       Paired differences of variants: intervals, tests, effect sizes, Holm's correction
edges             Which edges are worth a cache: each edge alone against text and its own control
effects           Effect sizes, Holm's correction, the smallest difference that n examples can show
environment       Versions, hardware, models and settings of a comparison
evidence          Evidence for a fuser's card, from a comparison
flat_rows         A comparison as flat rows, for CSV files and data frames
harness/          Recipes as models of the Language Model Evaluation Harness
metrics           Metrics of replies and of choices
peak_memory       Peak memory of the process and its GPUs
records           The record of one example in one variant
report/           A comparison as one HTML file
results_file      The file of records, written as they come
run_example       Run one example in one variant
run_variants      Run all examples of all variants
stats             Confidence intervals and p-values for paired examples
summary           Table rows from records
table             A comparison as terminal tables
table_cells       Cells and frames of terminal tables
table_details     Terminal tables of effect sizes, categories, agreement and edges
task              The request of a comparison, checked without a model
variants          The variants of a graph: channels, ends alone, controls, other fusers
verdict           Sentences that state what the numbers show
warnings          Warnings: training data, too few examples, metrics that disagree
"""
