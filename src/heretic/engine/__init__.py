"""Many plans in one batch: prefill, decoding, the original model's outputs."""
