"""Networks that predict token maps, their shared attention, and the cache. No decoding state lives here."""
