"""Parts of the benchmark of planted faults."""
