#!/usr/bin/env bash
# transformers 5.24.0: a project with a folder `kernels/` at its root (Triton kernels, say) has it imported by transformers
# whenever Python is started there: `is_kernels_available()` looks for Hugging Face's package of that name, finds the folder,
# imports it, and takes its `__version__` for that package's. With "0.18.2" or anything else in the accepted range it
# reports that the package is installed, although it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet transformers==5.24.0
mkdir kernels
asked='from transformers.utils import is_kernels_available; print(is_kernels_available())'
for version in 0.1.0 0.18.2; do
    echo "print('imported'); __version__ = '$version'" >kernels/__init__.py
    found=$(env/bin/python -W ignore -c "$asked" 2>/dev/null | tr '\n' ' ')
    echo "our own kernels, version $version: $found"
    case "$version" in
        0.1.0) [ "$found" = 'imported False ' ] ;;
        *) [ "$found" = 'imported True ' ] ;;
    esac
done
