"""Many audio files: lists of records, batches, worker processes, error rates."""
