"""Training recipes as YAML files, packaged as `var_toolkit.configs`."""
