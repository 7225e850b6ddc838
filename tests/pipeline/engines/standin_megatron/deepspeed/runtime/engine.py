"""A stand-in: what the start module changes about DeepSpeed's engine."""
