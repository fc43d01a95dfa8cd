"""Triton kernels beside their plain PyTorch references; installed as `var_toolkit.kernels`."""
