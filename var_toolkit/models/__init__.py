"""Networks that predict token maps, their shared attention, and the key-value cache. They hold no decoding state."""
