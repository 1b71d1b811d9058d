"""TIFF of every kind: slides, pyramids, stacks. The only room that imports tifffile.

series    which image and which level of a file is meant, and what its axes are
metadata  pixel sizes and channel names, as the different programs write them
pages     how a level is made of pages, and a page of tiles or strips; integers only
pixels    reading them
parts     the other files of an OME-TIFF image, without tifffile
"""
