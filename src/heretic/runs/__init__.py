"""Run folders: the manifest, the journal of trials, and the other files of a run."""
