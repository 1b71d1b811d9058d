"""Readers: one module for each library that reads a format."""
