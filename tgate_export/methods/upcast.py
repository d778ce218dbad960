"""Attention products in fp32 inside a half-precision denoiser.

Stable Diffusion 2.x was trained with it (`upcast_attention`): its logits overflow fp16. diffusers'
processor for fused attention ignores the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class AttentionInFloat32(TorchFunctionMode):
    """Casts query, key and value of every attention product to fp32, and its result back.

    It catches the product wherever it is called from, so that processors stay as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, an attention product in fp32."""
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype = args[0].dtype
        floats = [value.float() if isinstance(value, torch.Tensor) else value for value in args]
        if kwargs.get("attn_mask") is not None:
            kwargs["attn_mask"] = kwargs["attn_mask"].float()
        return func(*floats, **kwargs).to(dtype)
