"""A run: its state, loop, checkpoints, and what it leaves."""
