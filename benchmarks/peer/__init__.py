"""Parts of `benchmarks/versus_peer.py`."""
