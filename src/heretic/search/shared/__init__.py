"""A search that several processes share, through an Optuna storage that has an address."""
