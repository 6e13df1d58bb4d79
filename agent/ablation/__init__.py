"""Many cells of pre-training and evaluation (or fine-tuning), and one table of what came out."""
