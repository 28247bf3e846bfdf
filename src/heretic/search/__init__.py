"""Search: makes plans and learns from their scores."""

from heretic.search.space import SearchSpace
from heretic.search.study import Study

__all__ = ["SearchSpace", "Study"]
