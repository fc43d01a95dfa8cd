#!/usr/bin/env bash
# diffusers 0.36.0 beside torchao 0.18.0: `from diffusers import AutoencoderKL` fails with "NameError: name 'logger' is not
# defined", although no quantisation is asked for. Its import registers torchao's tensor types; NF4Tensor is no longer where
# it looks, and its handler of that ImportError logs to a logger that the module has not defined.
# diffusers 0.37.0 imports, with a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet diffusers==0.36.0 torchao==0.18.0 torch==2.14.1 numpy==2.4.6 'transformers<6' 'huggingface-hub<2'
code='from diffusers import AutoencoderKL; print("imported", AutoencoderKL.__name__)'
if env/bin/python -W ignore -c "$code" 2>log; then
    echo "diffusers 0.36.0 imports beside torchao 0.18.0 now"
    exit 1
fi
grep -o "NameError: name 'logger' is not defined" log | head -1
env/bin/pip install --quiet diffusers==0.37.0
env/bin/python -W ignore -c "$code" 2>log
