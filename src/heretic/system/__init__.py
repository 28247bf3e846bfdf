"""The machine, files, the Hub, memory, optional packages."""
