"""What is rendered: cameras, Gaussians, rendering, densification and losses."""
