"""Weights copied from the base's safetensors files, edited on the way."""
