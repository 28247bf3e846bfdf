"""Search: makes plans and learns from their scores."""

from heretic.search.space import SearchSpace
from heretic.search.study import Study, load_trials

__all__ = ["SearchSpace", "Study", "load_trials"]
