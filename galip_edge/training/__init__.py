"""Training GALIP: losses, the step, exact resume, distributed and accumulated batches."""
