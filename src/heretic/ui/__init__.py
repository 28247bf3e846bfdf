"""The local page `heretic ui` (extra `ui`): watches runs, and has a worker do the work.

The server loads neither torch nor transformers. `guard` stands before all that it answers.
"""
