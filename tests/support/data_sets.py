"""Data sets of the settings."""

from __future__ import annotations

from heretic.config.tables import Datasets, DatasetSpecification, each_of


def only(datasets: Datasets) -> DatasetSpecification:
    """The data set of a prompt set that has one."""
    (found,) = each_of(datasets)
    return found
