"""Heads: from features to tokens, probabilities and losses."""
