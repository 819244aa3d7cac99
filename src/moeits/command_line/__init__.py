"""The command line: every command is a stage function, every flag a keyword argument of it."""
