#!/usr/bin/env bash
# FID on ImageNet-256 as the VAR paper measures it: 50 images per class with the model's published settings, in
# float32, compared with the statistics of the ADM evaluator.
#
#   scripts/fid_imagenet.sh NAME VIRTUAL_imagenet256_labeled.npz [more options of `vargen evaluate sample`]
#
# The reference file is ADM's (openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/).
# Images go to fid-NAME/; the same command continues an interrupted run. PROCESSES=8 uses eight GPUs.
# fid-NAME.npz has the same images for the original evaluator, shuffled, as its Inception Score requires.
set -eu
name=${1:?the first argument must be a model, see vargen models}
reference=${2:?the second argument must be the reference file of the ADM evaluator for 256 px}
shift 2
[ -f "$reference" ] || { echo "$reference does not exist; it must be the reference file of the ADM evaluator for 256 px" >&2; exit 2; }
folder=fid-$(basename "$name")
torchrun --standalone --nproc-per-node "${PROCESSES:-1}" -m var_toolkit evaluate sample \
    --model "$name" --per-class 50 --batch-size "${BATCH:-32}" --out "$folder" --npz "$folder.npz" "$@"
python -m var_toolkit evaluate score --images "$folder" --reference "$reference"
