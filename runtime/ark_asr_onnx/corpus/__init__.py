"""Many audios: lists of records, batches, worker processes, error rates."""
