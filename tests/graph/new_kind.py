"""A new kind of agent: its file, and the line that registers it. Runs in a process of its own (test_new_kind.py)."""

import json
import sys
from typing import Annotated, ClassVar

from pydantic import Field

from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.entry import AgentContext, AgentEntry, Models
from cachegraph.agents.kinds import KINDS
from cachegraph.channels.payload import Payload
from cachegraph.channels.peer import Peer


class EchoSpec(AgentEntry):
    """Repeats what it hears."""

    echo: Annotated[str, Field(description="Put in front of what it hears, a template.")]
    times: Annotated[int, Field(ge=1, description="How often.")] = 1

    template_keys: ClassVar[tuple[str, ...]] = ("echo",)
    acts: ClassVar[bool] = False

    def create(self, context: AgentContext) -> "EchoAgent":
        return EchoAgent(context.name, self)

    def label(self, models: Models) -> str:
        return f"an echo, {self.times} times"


class EchoAgent:
    """The agent of kind `echo`."""

    def __init__(self, name: str, spec: EchoSpec):
        self.name = name
        self._spec = spec

    async def open(self) -> None: ...

    def peer(self) -> Peer:
        return Peer(self.name, "echo", why_no_cache=f"agent {self.name!r} {self._spec.no_cache}")

    async def turn(self, turn: Turn) -> Reply:
        heard = [await delivery.payload.read() for delivery in turn.deliveries]
        said = " ".join([str(turn.inputs["word"]), *heard] * self._spec.times)
        return Reply(Payload(self.name, said))

    async def close(self) -> None: ...


KINDS["echo"] = EchoSpec

if __name__ == "__main__":
    from cachegraph import Graph, RecipeError
    from cachegraph.graph.draw.render import to_text
    from cachegraph.graph.recipe.json_schema import recipe_schema

    recipe = sys.stdin.read()
    graph = Graph.from_yaml_text(recipe)
    built = Graph(inputs={"word": {}}, output="a").add_agent("a", echo="{{ word }}", times=3)
    problems = []
    for right, wrong in (("times: 2", "times: 0"), ("times", "timse"), ("{{ word }}", "{{ wrd }}")):
        try:
            Graph.from_yaml_text(recipe.replace(right, wrong))
        except RecipeError as error:
            problems += [problem.message for problem in error.problems]
    out = {
        "text": graph.run(word="hi").text,
        "built": built.run(word="yo").text,
        "again": Graph.from_yaml_text(graph.to_yaml()).run(word="hi").text,
        "outline": to_text(graph.spec),
        "warnings": [str(warning) for warning in graph.warnings()],
        "problems": problems,
        "torch": "torch" in sys.modules,
        "in_schema": "EchoSpec" in recipe_schema()["$defs"],
    }
    print(json.dumps(out))
