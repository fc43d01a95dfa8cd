"""Training: one loop for every objective, recipes as YAML files, one file an objective."""
