"""A tiny random network of transformers for depth estimation, as a folder."""

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor


def write_estimator(folder):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    widths = {"reassemble_hidden_size": 8, "neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 4}
    config = DepthAnythingConfig(backbone_config=backbone, head_hidden_size=4, **widths)
    DepthAnythingForDepthEstimation(config).eval().save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    return str(folder)
