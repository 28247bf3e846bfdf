"""What lies beside the weights: the model card and the reproduction file."""
