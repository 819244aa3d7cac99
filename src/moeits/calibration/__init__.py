"""What a forward pass shows of a model that is run one decoder layer at a time, from the checkpoint on disk."""
