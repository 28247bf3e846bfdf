"""Settings, judge and reproduction files of `heretic-llm` (another project), read as ours.

What its settings mean is known from its settings files and their comments, never from its code.
`rules` is the table, `convert` has a function for each way to convert a value, `translate` applies
them to a file.
"""
