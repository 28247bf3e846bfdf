"""The page of a run: `heretic report`. Nothing here needs torch.

`run` reads a run folder; `figures` turns what was read into rows; `charts` draws them with Altair;
`words` says the rest in tables and texts; `html` puts a page together, `pictures` writes files.
"""
