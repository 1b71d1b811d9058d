"""The seven stages, one module each: ingest, split, predict, stitch, verify, train, evaluate.

The first four turn an image into its mask. The other modules are what stages share.
"""
