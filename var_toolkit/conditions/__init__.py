"""Conditions: what an image is to show."""
