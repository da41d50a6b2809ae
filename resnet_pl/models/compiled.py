"""Compiled training steps, without a change to the net's names, copies or evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def compile_training(net: nn.Module, backend: str = "inductor") -> None:
    """Compiles a net in place, for training batches of the shape of the first; a second call does nothing.

    Evaluation and batches of another shape run as written: each would be compiled anew, for a minute. State-dict keys
    stay the same, and a copy of the net is not compiled.

    Args:
        net: any net that takes images `(N, C, H, W)`; compiled at its first training batch.
        backend: what compiles, as in torch.compile.
    """
    if net._compiled_call_impl is not None:
        return
    compiled, plain = torch.compile(net._call_impl, dynamic=False, backend=backend), net._call_impl
    shape: torch.Size | None = None

    def call(images: Tensor) -> Any:
        nonlocal shape
        if not net.training:
            return plain(images)
        shape = shape or images.shape
        return (compiled if images.shape == shape else plain)(images)

    # What nn.Module.compile sets, and what pickling and copying leave out.
    net._compiled_call_impl = call
