"""Segment images that do not fit in memory with a U-Net, without a seam."""
