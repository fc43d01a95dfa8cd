"""Decoding: filters, per-picture noise, plans and the engine. No network and no file format lives here."""
