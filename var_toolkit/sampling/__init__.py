"""Decoding: filters, per-image noise, plans and the engine. No network and no file format lives here."""
