"""What `heretic doctor` looks at: small checks of the machine, and what would fit on it."""
