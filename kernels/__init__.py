"""Triton kernels beside their plain PyTorch references; installed as `var_toolkit.kernels`."""

from var_toolkit.kernels.pyramid_attention import attention

__all__ = ["attention"]
