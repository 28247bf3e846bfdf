"""Questions after a search, and what is done with a trial: save, upload, chat, benchmarks."""
