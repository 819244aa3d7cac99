"""What is tried on a model before one size or one criterion is settled."""
