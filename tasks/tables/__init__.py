"""What every step stands on: the schema, storage behind URIs, steps whose results are named by content, the guard that
turns an exception into a row's error, frame stores, and what a run writes about itself.

This room knows no step. It imports no other room.
"""
