"""Programs around a trained model: ask it, show a run, draw a correction, export."""
