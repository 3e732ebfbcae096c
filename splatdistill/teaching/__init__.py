"""The shipped teacher: its scene grammar, renderer and training."""
