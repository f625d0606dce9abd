"""Does it hold: model organisms, retraining with controls, baselines, and what a model itself shows."""
