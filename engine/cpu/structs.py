"""The C structures of a model, its weights and its rows, field by field as model.h and gemv.h declare them."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

__all__ = ["LayerStruct", "MatrixStruct", "ModelStruct", "RowStruct", "SegmentStruct"]


class MatrixStruct(Structure):
    """A linear layer; gemv.h."""

    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("panels", c_void_p),
        ("scales", c_void_p),
    ]


class LayerStruct(Structure):
    """A decoder layer; model.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("norm_in", "norm_attention", "norm_mlp", "norm_out", "q_norm", "k_norm")),
        *((name, MatrixStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("rope", c_int64),
        ("window", c_int64),
    ]


class ModelStruct(Structure):
    """A model; model.h."""

    _fields_ = [
        ("layers", POINTER(LayerStruct)),
        *((name, c_int64) for name in ("depth", "hidden", "inner", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("scale", c_float),
        ("gelu", c_int64),
        ("is_bf16", c_int64),
        ("norm", c_void_p),
        ("head", MatrixStruct),
        ("embeddings", c_void_p),
        ("embedding_scale", c_float),
    ]


class SegmentStruct(Structure):
    """One layer of a segment of a row's cache; model.h."""

    _fields_ = [("keys", c_void_p), ("values", c_void_p), ("key_stride", c_int64), ("value_stride", c_int64)]


class RowStruct(Structure):
    """A new token and the cache that it attends to; model.h."""

    _fields_ = [
        ("segments", POINTER(SegmentStruct)),
        ("lengths", POINTER(c_int64)),
        ("positions", c_void_p),
        ("count", c_int64),
        ("position", c_int64),
        ("behind", c_int64),
        ("token", c_int64),
    ]
