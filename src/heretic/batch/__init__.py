"""Many runs as one job that can be interrupted: `heretic batch FILE`.

A batch has a folder, and each job a folder in it, which holds the job's run folder. Each job runs
in a process of its own. What a job has come to is read from its folder: which run it has, whether a
process works on it (a lock), and how it ended (`heretic.batch.job.Ending`).
"""
