"""The group Workers of the settings. Nothing here changes what a plan scores."""

from __future__ import annotations

from typing import Annotated, Literal

from heretic.config.declaration import LARGEST, FieldGroup, Optionally, setting


class WorkersFields(FieldGroup):
    """Processes that score plans, on this machine or on a Ray cluster."""

    workers: int = setting(
        0,
        "Workers",
        "Processes that score plans, each with a model of its own, by Ray (extra `ray`); 0 "
        "searches in this process. Without ray_address they run on this machine.",
        ge=0,
        le=10_000,
        scores=False,
    )
    worker_mode: Literal["asynchronous", "batches"] = setting(
        "asynchronous",
        "Workers",
        "asynchronous gives every worker a new plan as soon as it is free; batches proposes plans "
        "for all workers, and waits for all of them, which one process does too with plans_at_once "
        "as large.",
        scores=False,
    )
    gpus_per_worker: Annotated[int | None, Optionally] = setting(
        None,
        "Workers",
        "GPUs of each worker; a model spans them through the device map. Unset: 1 where there is a "
        "CUDA device, or else 0.",
        example=2,
        ge=0,
        le=LARGEST,
        scores=False,
    )
    ray_address: Annotated[str | None, Optionally] = setting(
        None,
        "Workers",
        "Head of a Ray cluster that this machine belongs to, as HOST:PORT, or auto. Its nodes are "
        "sent prompts and the secrets of scorers, and decide the scores.",
        example="auto",
        scores=False,
        consent=True,
    )
    allow_unauthenticated: bool = setting(
        False,
        "Workers",
        "Join a Ray cluster without authentication, whose nodes anybody who reaches it can use.",
        scores=False,
        consent=True,
    )
    storage: Annotated[str | None, Optionally] = setting(
        None,
        "Workers",
        "Address of an Optuna storage on which several processes search together (extra "
        "`storage`): postgresql://, mysql://, sqlite:///PATH, or grpc://HOST:PORT. Whoever writes "
        "there decides the search. It may hold a password: HERETIC_STORAGE keeps it out of the "
        "list of processes.",
        example="postgresql://user@host/heretic",
        scores=False,
        consent=True,
    )
