"""Segments: attention within each of several sequences that stand one after another without padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, groupby
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F

# Attention weights held at once on a CPU, in numbers: they stay in the second-level cache.
_WEIGHTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Segments:
    """Where the sequences of one packed row lie.

    Attributes:
        queries: number of query positions of each sequence.
        keys: number of key positions of each sequence; the same, but where some positions only are computed.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @cached_property
    def query_bounds(self) -> torch.Tensor:
        """Borders of the sequences among the query positions, int32 [B + 1]."""
        return torch.tensor([0, *accumulate(self.queries)], dtype=torch.int32)

    @cached_property
    def key_bounds(self) -> torch.Tensor:
        """Borders of the sequences among the key positions, int32 [B + 1]."""
        return torch.tensor([0, *accumulate(self.keys)], dtype=torch.int32)

    def to(self, device: torch.device) -> Segments:
        """Put the borders on a device, where kernels read them, and return the segments."""
        if device.type != "cpu":
            for name in ("query_bounds", "key_bounds"):
                self.__dict__[name] = getattr(self, name).to(device, non_blocking=True)
        return self


class _Run(NamedTuple):
    """Neighbours of equal length: `rows` sequences of `queries` x `keys` positions from `query` and `key` on."""

    query: int
    key: int
    rows: int
    queries: int
    keys: int


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    scale: float,
    causal: bool,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return softmax(q k^T) v within each segment, [T_q, H, d].

    Args:
        query: [H, T_q, d].
        key: [G, T_k, d], G a divisor of H.
        value: [G, T_k, d].
        segments: the sequences.
        scale: factor of the products before the softmax.
        causal: whether a position sees itself and those before it only; needs as many queries as keys.
        dropout: share of attention weights to drop.
    """
    if causal and segments.queries != segments.keys:
        raise ValueError("causal attention needs every position's query")
    if has_kernel(query.device, query.dtype) and not dropout:
        return _on_gpu(query, key, value, segments, scale, causal)
    # On a CPU plain products beat the fused kernel in bf16, and by far in its backward pass; in fp32 it is the faster.
    differentiated = torch.is_grad_enabled() and query.requires_grad
    plain = query.device.type == "cpu" and (query.dtype == torch.bfloat16 or differentiated) and not causal
    parts = []
    for run in _runs(segments, query.shape[0]):
        q = _cut(query, run.query, run.rows, run.queries)
        k, v = (_cut(t, run.key, run.rows, run.keys) for t in (key, value))
        part = _plain(q, k, v, scale, dropout) if plain else _fused(q, k, v, scale, causal, dropout)
        parts.append(part.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(segments: Segments, heads: int) -> Iterator[_Run]:
    query = key = 0
    for (queries, keys), group in groupby(zip(segments.queries, segments.keys, strict=True)):
        left = len(list(group))
        at_once = max(1, _WEIGHTS_AT_ONCE // max(1, heads * queries * keys))
        while left:
            count = min(left, at_once)
            yield _Run(query, key, count, queries, keys)
            query, key, left = query + count * queries, key + count * keys, left - count


def _cut(tensor: torch.Tensor, start: int, count: int, length: int) -> torch.Tensor:
    """Return a view [count, H, length, d] of neighbours in a packed [H, T, d]."""
    part = tensor[:, start : start + count * length]
    return part.view(part.shape[0], count, length, part.shape[2]).transpose(0, 1)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float) -> torch.Tensor:
    rows, heads, length, size = q.shape
    groups = k.shape[1]
    # Heads that share keys stand together, so that no key is copied for them.
    q = q.reshape(rows * groups, heads // groups * length, size)
    k, v = (t.reshape(rows * groups, -1, size) for t in (k, v))
    weights = torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights.to(v.dtype), v).view(rows, heads, length, size)


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool, dropout: float
) -> torch.Tensor:
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=shared)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device has a kernel for attention of packed sequences."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and _varlen_kernel() is not None


def _on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    q, k, v = (t.transpose(0, 1) for t in (query, key, value))
    bounds = segments.to(query.device)
    sizes: tuple[Any, ...] = (bounds.query_bounds, bounds.key_bounds, max(segments.queries), max(segments.keys))
    if _varlen_kernel() == "flash_attn":
        from flash_attn import flash_attn_varlen_func

        return cast(torch.Tensor, flash_attn_varlen_func(q, k, v, *sizes, softmax_scale=scale, causal=causal))
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    # Releases before 2.13 let heads share keys unasked.
    shared: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]}
    if "enable_gqa" not in _parameters(varlen_attn):
        shared = {}
    return cast(torch.Tensor, varlen_attn(q, k, v, *sizes, scale=scale, window_size=window, **shared))


@cache
def _varlen_kernel() -> str | None:
    """Return what computes attention of packed sequences on a GPU: "flash_attn", "torch" or nothing."""
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        pass
    else:
        return "flash_attn"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return "torch" if {"scale", "window_size"} <= _parameters(varlen_attn) else None


@cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
