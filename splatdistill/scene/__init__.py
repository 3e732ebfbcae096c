"""The 3D scene: cameras, Gaussians, rendering, shading, densification and losses."""
