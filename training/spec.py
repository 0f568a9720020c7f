"""Training recipes as typed values: the trained edge, the data, the fuser, the losses and the optimizer."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cachegraph.engine.spec import Strict
from cachegraph.graph.recipe.spec import Identifier, ModelEntry

from .data.data_spec import DataSpec

__all__ = [
    "FuseSpec",
    "FuserSpec",
    "GraftSpec",
    "JointSpec",
    "JudgeSpec",
    "LossSpec",
    "OptimSpec",
    "OwnFuseSpec",
    "ReplyRidgeSpec",
    "RidgeSpec",
    "TrainSpec",
    "TrainingControl",
]

TrainingControl = Literal["none", "identical", "zero", "tuned"]


class RidgeSpec(Strict):
    """The closed-form start of a translator, from texts that both models read (arXiv 2608.03893)."""

    tokens: Annotated[PositiveInt, Field(description="Number of sharer tokens of the training texts to fit on.")] = (
        60_000
    )
    penalty: Annotated[PositiveFloat, Field(description="Lambda, for features of variance 1.")] = 0.01


class GraftSpec(Strict):
    """A translator, for text that only the sharer reads."""

    kind: Literal["graft"] = "graft"
    rank: PositiveInt = 768
    hidden: NonNegativeInt = 768
    layers: Annotated[
        Literal["all"] | tuple[NonNegativeInt, ...], Field(description="The sharer layers that it reads.")
    ] = "all"
    ridge: Annotated[RidgeSpec | None, Field(description="null: start from random weights.")] = RidgeSpec()
    start: Annotated[
        str | None,
        Field(
            description="Name or folder of a trained translator of the same rank and hidden size, whose weights the "
            "training starts from. If it reads more layers, the first layer is fitted to its bottleneck."
        ),
    ] = None


class ReplyRidgeSpec(Strict):
    """The closed-form start of a bottleneck fuser: from the sharer's cache to the receiver's embedding of the reply."""

    positions: Annotated[
        PositiveInt,
        Field(description="Number of a prompt's last shared positions to fit on, each paired with the reply."),
    ] = 2
    penalty: Annotated[PositiveFloat, Field(description="Lambda, for features of variance 1.")] = 0.1


class FuseSpec(Strict):
    """A fuser, for text that both read."""

    kind: Literal["fuse"] = "fuse"
    architecture: Literal["c2c", "lean", "bottleneck"] = "lean"
    params: Annotated[dict[str, int | float | str], Field(description="The architecture's own sizes.")] = {}  # noqa: RUF012
    layer_map: Literal["last_aligned", "k_nearest"] = "last_aligned"
    sharer_depth: Annotated[
        PositiveInt | None,
        Field(description="Number of the sharer's first layers that are computed and read; null: all."),
    ] = None
    alignment: Literal["ids", "first", "longest", "offsets"] = "offsets"
    reads: Literal["receiver-prompt", "own-prompt"] = "receiver-prompt"
    rope: Annotated[
        Literal["auto", "rotated", "unrotated"], Field(description="auto: rotated for c2c, else unrotated.")
    ] = "auto"
    anneal_steps: Annotated[
        PositiveInt | None, Field(description="Steps over which the gates' temperature falls; null: all.")
    ] = None
    ridge: Annotated[
        ReplyRidgeSpec | None, Field(description="Of a bottleneck; null: its first layer starts from random weights.")
    ] = None

    @model_validator(mode="after")
    def _settings_are_of_the_architecture(self) -> "FuseSpec":
        is_bottleneck = self.architecture == "bottleneck"
        others = {"layer_map": "last_aligned", "anneal_steps": None} if is_bottleneck else {"ridge": None}
        if wrong := next((name for name, unset in others.items() if getattr(self, name) != unset), None):
            raise ValueError(f"{wrong} is not a setting of the architecture {self.architecture!r}; remove it")
        if is_bottleneck and self.rope == "rotated":
            raise ValueError("a bottleneck reads unrotated keys; remove rope, or set it to unrotated")
        return self


class OwnFuseSpec(FuseSpec):
    """A fuser of text that is in both agents' own prompts."""

    reads: Literal["own-prompt"] = "own-prompt"


class JointSpec(Strict):
    """Both at once: text in both agents' prompts is fused, text that only the sharer reads is translated."""

    kind: Literal["joint"]
    fuse: OwnFuseSpec = OwnFuseSpec()
    graft: GraftSpec = GraftSpec()


FuserSpec = Annotated[GraftSpec | FuseSpec | JointSpec, Field(discriminator="kind")]


class LossSpec(Strict):
    """The loss: a weighted sum of these terms."""

    next_token: Annotated[
        NonNegativeFloat, Field(description="Negative log-likelihood of the response, in nats per token.")
    ] = 1.0
    choices: Annotated[
        NonNegativeFloat, Field(description="Cross-entropy of the right choice among the row's choices.")
    ] = 0.0
    temperature: Annotated[
        PositiveFloat,
        Field(
            description="Temperature of the softmax over the choices' log-likelihoods. Above 1, rows that are wrong by "
            "far have less of the gradient."
        ),
    ] = 1.0
    mismatched: Annotated[
        NonNegativeFloat,
        Field(description="Contrast: the response must be likelier with its own text's cache than with another's."),
    ] = 0.0
    margin: Annotated[NonNegativeFloat, Field(description="Margin of the contrast, in nats.")] = 4.0


class OptimSpec(Strict):
    """AdamW with linear warm-up and cosine decay."""

    steps: PositiveInt = 600
    texts: Annotated[PositiveInt, Field(description="Texts per step; all examples of a text share its cache.")] = 2
    rows: Annotated[PositiveInt, Field(description="Examples per text and step, drawn in each step.")] = 4
    accumulate: Annotated[
        PositiveInt, Field(description="Batches whose gradients are summed for one optimizer step.")
    ] = 1
    learning_rate: PositiveFloat = 2e-4
    final: Annotated[
        float, Field(ge=0, le=1, description="Learning rate of the last step, as a fraction of `learning_rate`.")
    ] = 0.05
    warmup: NonNegativeInt = 20
    weight_decay: NonNegativeFloat = 0.0
    clip: Annotated[PositiveFloat, Field(description="Maximum norm of the gradient.")] = 1.0
    precision: Annotated[
        Literal["auto", "no", "bf16"], Field(description="Precision of the fuser's arithmetic; auto: the receiver's.")
    ] = "auto"


class JudgeSpec(Strict):
    """Dev evaluation of checkpoints: task accuracy, and its gap to another text's cache."""

    every: Annotated[PositiveInt, Field(description="Steps between dev evaluations.")] = 100
    rows: PositiveInt = 128
    patience: Annotated[
        PositiveInt | None, Field(description="Dev evaluations without progress before the training stops.")
    ] = None
    keep: Annotated[
        Literal["best", "last"],
        Field(
            description="Which weights the fuser has: of the checkpoint that is best by the dev rows, or of the last "
            "step, so that trainings of equal length compare."
        ),
    ] = "best"

    @model_validator(mode="after")
    def _patience_needs_a_best(self) -> "JudgeSpec":
        if self.keep == "last" and self.patience is not None:
            raise ValueError("`patience` stops a training after its best checkpoint; leave it out with `keep: last`")
        return self


class TrainSpec(Strict):
    """A whole training recipe, version 1."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    description: str = ""
    graph: Annotated[str, Field(alias="for", description="The recipe of the graph that the fuser is for.")]
    edge: Annotated[str | None, Field(description="sender:receiver; may be left out if the graph has one edge.")] = None
    models: Annotated[dict[Identifier, ModelEntry], Field(description="Models that replace some of the graph's.")] = {}  # noqa: RUF012
    data: DataSpec
    fuser: FuserSpec
    loss: LossSpec = LossSpec()
    optim: OptimSpec = OptimSpec()
    judge: JudgeSpec = JudgeSpec()
    control: Annotated[
        TrainingControl,
        Field(
            description="identical: the receiver is its own sharer; zero: the sharer's cache is all zeros; tuned: the "
            "receiver reads the sharer's text behind a trained prefix of as many parameters."
        ),
    ] = "none"
    seed: NonNegativeInt = 0
    scope: Annotated[
        str | None,
        Field(
            description="Prompts that the fuser is for, for its card; only edges that name it then use it. null: any."
        ),
    ] = None
    licence: Annotated[str | None, Field(description="Licence of the fuser, for its card.")] = None
    output: Annotated[str | None, Field(description="The fuser's folder; by default named after the pair.")] = None

    @model_validator(mode="after")
    def _edge_has_two_ends(self) -> "TrainSpec":
        if self.edge is not None and len([part for part in self.edge.split(":") if part]) != 2:
            raise ValueError(f"edge is written sender:receiver, not {self.edge!r}")
        if not (self.loss.next_token or self.loss.choices):
            raise ValueError("loss: next_token or choices must be above 0")
        if self.loss.temperature != 1 and not self.loss.choices:
            raise ValueError("loss: temperature is that of choices; set choices above 0, or leave temperature out")
        if self.loss.mismatched and self.optim.texts < 2:
            raise ValueError("loss: mismatched reads another text of the same step; set optim.texts to 2 or more")
        return self
