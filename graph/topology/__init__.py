"""Graph algorithms over names and edges. Independent of recipes, agents and torch.

cycles        Cycles, generations, and agents from which no path leads to an output
loops         Loops that bounded edges close, and how they nest
order         An order of agents in which senders come before receivers
reachability  Which agents always run under conditions, and whether an output is always reached
"""
