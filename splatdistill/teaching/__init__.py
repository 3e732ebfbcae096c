"""Training of the shipped teacher: scenes, renderer and networks."""
