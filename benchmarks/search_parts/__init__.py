"""Parts of the benchmark that compares searches."""
