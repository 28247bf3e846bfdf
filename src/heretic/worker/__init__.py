"""The process that does a run's work for a web page, and the client by which a server drives it.

The worker (`python -m heretic.worker`) runs the stages of `heretic.pipeline` on the run folders of
the command line: either goes on with what the other began. It is spoken to by lines of JSON
(`heretic.worker.protocol`); there is no port. `heretic.worker.client.WorkerProcess` starts it, asks
it, and knows its state; it loads no torch.
"""
