"""Finished runs, read, compared and shown on one page."""
