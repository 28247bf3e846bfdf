"""Copy the base's safetensors files, and edit the writers' tensors in the copy."""
