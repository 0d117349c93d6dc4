"""Data sets: records, readers, decoding, transforms, batches, checks."""
