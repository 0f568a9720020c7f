"""Six stories written for tests, with a question, a right and a wrong answer each."""

__all__ = ["ROWS"]

STORIES = """
Mila found a green key under the mat. She gave it to Ben. | What did Mila find? | a green key | a loaf of bread
Every Friday the baker Olaf rows to the island to sell bread. | How does Olaf get to the island? | he rows | he flies
The old tram stopped because a goose had built its nest on the rails. | What stopped the tram? | a nest | heavy snow
Nia painted the garden door yellow, since her brother likes lemons. | Which colour is the door? | yellow | purple
Pavel lost three chess games, then won the last with a knight. | How many games did Pavel lose? | three | eleven
At dawn the keeper feeds two cats named Salt and Pepper. | What are the cats called? | Salt and Pepper | Tick and Tock
"""
ROWS = [
    {"context": story, "question": question, "choices": [wrong, right], "answer": 1}
    for story, question, right, wrong in (line.split(" | ") for line in STORIES.strip().splitlines())
]
