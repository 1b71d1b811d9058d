"""What is decided before a pixel is read: pure functions on integers."""
