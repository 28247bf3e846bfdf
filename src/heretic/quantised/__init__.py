"""Quantised checkpoints: what config.json says, and how packed weights are read and written.

No model is needed here, and no forward pass: a packed weight is a few tensors of the files.
"""
