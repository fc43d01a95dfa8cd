"""One road from label and seed to picture, for every visual autoregressive method."""
