"""The mathematics: residuals to directions, directions to edits. Pure functions on tensors."""
