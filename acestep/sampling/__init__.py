"""Schedules, steppers, guidance and the loop, as functions over batched tensors: no weights, no files."""
