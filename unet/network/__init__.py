"""The network itself, and all that computes with torch for a prediction."""
