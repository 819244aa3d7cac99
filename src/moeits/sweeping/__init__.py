"""A sweep along tau: its folder, its points, its settings."""
