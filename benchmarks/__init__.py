"""What is fast and by how much, against programs written by someone else. Run all with `make bench`."""
