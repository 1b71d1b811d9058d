"""What a model is, in numbers: no torch, so that planning and the configuration load quickly."""
