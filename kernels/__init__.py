"""Triton kernels and their plain PyTorch references; installed as `var_toolkit.kernels`."""
