"""Benchmarks of the lm-evaluation-harness, on the original and the edited model.

`run` runs the tasks and keeps finished results, `measure` measures one task on a model in memory,
`results` holds plain records and compares them, `store` keeps them in a run folder, `tasks` knows
the names of tasks.
"""
