"""Benchmarks of the lm-evaluation-harness, on the original and the edited model side by side.

`run` goes through tasks and keeps what is done, `harness` measures one task on a model in memory,
`results` holds plain records and compares them, `store` keeps them in a run folder.
"""
