"""A cost model of edges: from measured constants to the length, receivers and bandwidth from which a cache beats text.

break_even       From which length and bandwidth a cache edge beats text
check            Predictions beside a real run
collect          The constants that a recipe needs: kept ones, and measuring the others
constants        Measured constants of models and edges, and curves through them
constants_cache  Constants in the cache folder, by machine, models and fuser
measure          Measure the constants on loaded models
predict          Predicted seconds and bytes of a run
shape            A recipe as lengths: prompts, replies, edges. No torch
"""
