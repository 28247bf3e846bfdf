"""From a chosen trial to files: merged weights or an adapter, documents, the Hub, and back."""
