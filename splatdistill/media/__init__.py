"""Pictures, films and pages of a splat and of a run."""
