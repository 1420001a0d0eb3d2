"""How large the KV cache of a model is.

Covers the attention shapes of named models and the bytes of one block of tokens. Does not cover
anything about tokens or layouts inside a block.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction

from cascade_mpi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Model:
    """The attention shape of a model; `block_tokens` is the customary block of its workloads."""

    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    element_bytes: int = 2  # fp16 or bf16

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes


MODELS = {
    "llama-3-70b": Model(layers=80, kv_heads=8, head_dim=128, block_tokens=512),
    "qwen-2.5-72b": Model(layers=80, kv_heads=8, head_dim=128, block_tokens=1024),
    "qwen-2.5-32b": Model(layers=64, kv_heads=8, head_dim=128, block_tokens=1024),
    "qwen-2.5-7b": Model(layers=28, kv_heads=4, head_dim=128, block_tokens=1024),
}


def block_bytes(name: str, tokens: int | None = None, scale: Fraction = Fraction(1)) -> int:
    """Local. Bytes of one block of `tokens` tokens (None: the model's own), times `scale`, rounded down.

    ConfigError for an unknown model (with the nearest name), and for a block of less than one byte.
    """
    model = MODELS.get(name.lower())
    if model is None:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(MODELS)}"
        raise ConfigError(f"unknown model {name!r}: {remedy}")
    tokens = model.block_tokens if tokens is None else tokens
    nbytes = int(model.bytes_per_token * tokens * scale)
    if nbytes < 1:
        raise ConfigError(f"{tokens} tokens of {name} at scale {scale} are less than one byte: raise the scale")
    return nbytes


def parse_scale(text: str) -> Fraction:
    """Local. A scale such as "1/64", "0.25" or "1"; ConfigError unless it is above 0 and at most 1."""
    try:
        scale = Fraction(text) if len(text) <= 40 and "e" not in text.lower() else Fraction(0)  # "1e999999" is huge
    except (ValueError, ZeroDivisionError):
        scale = Fraction(0)
    if not 0 < scale <= 1:
        raise ConfigError(f'scale {text!r}: write a fraction or a number above 0 and up to 1, such as "1/64" or "0.25"')
    return scale
