"""Tokenizers: images to token maps and back."""
