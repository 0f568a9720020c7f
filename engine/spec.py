"""The engine's part of a recipe: which model, where it runs, how it generates."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

__all__ = ["DType", "GenerateSpec", "Limits", "ModelSpec", "Replicas", "Strict", "Weights"]

DType = Literal["auto", "bfloat16", "float16", "float32"]
Weights = Literal["int8"]


class Strict(BaseModel):
    """The base of every part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Replicas(Strict):
    """How many replicas of a model a cluster may have."""

    min: Annotated[PositiveInt, Field(description="Replicas that are started with the first run.")] = 1
    max: Annotated[
        PositiveInt | None,
        Field(description="More are started while every replica has turns waiting; by default no more than min."),
    ] = None

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max is {self.max} and min {self.min}; max must be at least min")
        return self

    @property
    def most(self) -> int:
        """The greatest number of replicas."""
        return self.max or self.min


class ModelSpec(Strict):
    """A model that runs on this machine."""

    source: Annotated[str, Field(min_length=1, description="A catalogue name, a hub id, a folder or a .gguf file.")]
    revision: Annotated[str | None, Field(description="A commit, tag or branch of a hub model.")] = None
    dtype: Annotated[DType, Field(description="auto: bfloat16 if the hardware computes in it.")] = "auto"
    weights: Annotated[
        Weights | None,
        Field(description="int8: weights of linear layers in eight bits; KV caches keep the dtype."),
    ] = None
    device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
            description="auto: the visible GPU with the most free memory, else the CPU.",
            json_schema_extra={"patternErrorMessage": "'auto', 'cpu', 'mps', 'cuda' or a GPU such as 'cuda:0'"},
        ),
    ] = "auto"
    device_map: Annotated[
        Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, str | int] | None,
        Field(description="Placement on several GPUs, as in accelerate: the name of a rule, or a device per module."),
    ] = None
    kv_memory: Annotated[
        Annotated[ByteSize, Field(gt=0)] | None,
        Field(description="Memory for its KV caches, as '2GB' or in bytes; by default a part of the free memory."),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]}),
    ] = None
    chat_template: Annotated[
        str | None,
        Field(description="Path of a Jinja file relative to the recipe, for a model that ships no chat template."),
    ] = None

    replicas: Annotated[Replicas, Field(description="With --cluster: how many replicas share the turns.")] = Replicas()
    gpus: Annotated[float | None, Field(ge=0, description="With --cluster: GPUs of one replica, such as 1 or 0.5.")] = (
        None
    )
    memory: Annotated[
        Annotated[ByteSize, Field(gt=0)] | None,
        Field(description="With --cluster: memory of one replica, as '8GB' or in bytes; by default estimated."),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]}),
    ] = None
    resources: Annotated[
        dict[str, PositiveFloat] | None, Field(description="With --cluster: custom resources of one replica, by name.")
    ] = None

    def without_placement(self) -> "ModelSpec":
        """The same model, wherever and however often it runs."""
        return self.model_copy(update={"replicas": Replicas(), "gpus": None, "memory": None, "resources": None})

    @model_validator(mode="after")
    def _rounded_on_one_device(self) -> "ModelSpec":
        if self.weights is not None and self.device_map is not None:
            raise ValueError("weights: int8 is for a model on one device; leave out weights or device_map")
        return self


class GenerateSpec(Strict):
    """How an agent decodes. Greedy unless a temperature is given."""

    max_new_tokens: Annotated[
        NonNegativeInt, Field(description="0: prefill only; a text edge then carries the prompt.")
    ] = 128
    temperature: Annotated[float, Field(ge=0, le=10, description="0: greedy decoding.")] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[NonNegativeInt, Field(description="0: no limit.")] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: PositiveFloat = 1.0
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(description="Strings that end the reply.")
    ] = ()
    seed: int | None = None
    min_new_tokens: NonNegativeInt = 0
    ignore_eos: Annotated[
        bool, Field(description="Ignore the end-of-sequence token: always decode max_new_tokens.")
    ] = False
    json_schema: Annotated[
        dict[str, Any] | None,
        Field(description="JSON Schema that constrains the reply; the parsed reply becomes the message's data."),
    ] = None

    def __hash__(self) -> int:  # a schema has no hash of its own
        return hash(self.model_dump_json())


class Limits(Strict):
    """Bounds of a whole run."""

    timeout: Annotated[PositiveFloat | None, Field(description="Maximum seconds of the run.")] = None
    max_tokens: Annotated[
        PositiveInt | None,
        Field(description="Maximum tokens that all agents together generate; the last reply is cut."),
    ] = None
    max_concurrent: Annotated[
        PositiveInt | None, Field(description="Maximum number of agents that run at the same time.")
    ] = None
