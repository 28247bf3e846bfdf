"""How two checkpoints differ, tensor by tensor, and whether an export is what its files say."""
