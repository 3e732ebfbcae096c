"""Splat file formats, one file a format."""
