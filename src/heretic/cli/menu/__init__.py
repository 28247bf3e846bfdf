"""What can be asked and done at a terminal."""
