"""What runs: a recipe's value, its plan, the runtime, events and results."""
