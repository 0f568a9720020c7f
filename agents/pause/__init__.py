"""Questions to a person: the run pauses until it is resumed with the answer.

agent  Renders the question and pauses the run
spec   The agent kind `pause`
"""
