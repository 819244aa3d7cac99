"""The parts of an evaluation: tasks and their local data, the harness around a model, perplexity, and the results."""
