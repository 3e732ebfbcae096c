"""Configuration: the settings of a run, the presets, and how YAML and words change them."""
