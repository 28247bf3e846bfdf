"""Fitted edits: the vectors of an edit found by the gradient, along a path of trade-offs.

`texts` holds what is fitted to, `objective` makes a number of it, `fit` minimises that number.
"""
