"""The parts of a measurement: what is in the files, what a run of the model shows, and what energy it takes."""
