"""Evaluates many plans in one batch: prefill, decoding, states of the original model."""
