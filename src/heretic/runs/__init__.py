"""Run folders: the manifest, the journal of trials, and the files beside them."""
