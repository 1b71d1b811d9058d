"""What is done, one module per stage: ingest, split, predict, stitch, verify; train, evaluate."""
