"""Signals of a whole checkpoint: its work in units, and what those hold in memory."""
