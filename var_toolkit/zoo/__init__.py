"""Names, configurations, weights and files of the models; published checkpoints' key names live here alone."""
