#!/usr/bin/env bash
# diffusers 0.42.1: its converter of latent-diffusion autoencoders (`convert_ldm_vae_checkpoint`, behind `from_single_file`)
# has no rule for attention blocks inside the levels (`encoder.down.4.attn.0...`). KL-16, the autoencoder of MAR, FlowAR and
# others, has them at its coarsest level: 20 of the encoder's tensors and 30 of the decoder's keep their old names, so the
# converted state dict misses 50 of 338. Seen for the layout of KL-16 at a tenth of its width.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet diffusers==0.42.1 torch==2.14.1 numpy==2.4.6
env/bin/python -W ignore - <<'PYTHON'
import re

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

LEVELS = 5
with torch.device("meta"):
    network = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8, 16),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * (LEVELS - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (LEVELS - 1),
    )


def published(name: str) -> str:
    """What latent diffusion calls a tensor of the network."""
    if found := re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.*)", name):
        side, way, level, rest = found.groups()
        level = int(level) if way == "down" else LEVELS - 1 - int(level)
        for ours, theirs in (
            (r"resnets\.", "block."), ("conv_shortcut", "nin_shortcut"),
            (r"(down|up)samplers\.0", r"\1sample"), (r"attentions\.", "attn."),
        ):  # fmt: skip
            rest = re.sub(ours, theirs, rest)
        name = f"{side}.{way}.{level}.{rest}"
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda one: f"mid.block_{int(one[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    if ".attn" in name:
        for ours, theirs in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")):
            name = name.replace(ours, theirs)
    return name


expected = network.state_dict()
checkpoint = {}
for name, tensor in expected.items():
    convolution = ".attn" in published(name) and tensor.ndim == 2  # there attention is made of 1 x 1 convolutions
    checkpoint[published(name)] = tensor[..., None, None] if convolution else tensor
missing = expected.keys() - convert_ldm_vae_checkpoint(checkpoint, network.config).keys()
print(f"{len(expected)} tensors, {len(missing)} missing after conversion, such as {min(missing)}")
assert (len(expected), len(missing)) == (338, 50)
assert all(".attentions." in name and "_blocks." in name for name in missing)
PYTHON
