"""What commands show and log: progress, tables, residual geometry."""
