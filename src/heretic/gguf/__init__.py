"""GGUF files: converting, quantising and running models with llama.cpp.

Conversion is done by llama.cpp's own scripts in another process, the rest through its C interface.
"""
