"""What changes in a checkpoint when experts go, beside the tensors: its config and its card."""
