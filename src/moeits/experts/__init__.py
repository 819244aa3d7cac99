"""The experts of a checkpoint: which tensor belongs to which of them, in every family of models."""
