"""The four stages, one module each: ingest, split, predict, stitch."""
