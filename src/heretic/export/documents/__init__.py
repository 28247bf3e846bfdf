"""The files that describe a saved model: parameters, reproduction file, model card."""
