"""How good a mask is, and how it looks beside its labels."""
