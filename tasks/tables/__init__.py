"""What every step stands on: the schema, storage behind URIs, steps whose results are named by content, the guard that
turns an exception into a row's error, frame stores, and what a run writes about itself. Where a run starts is here,
too: the search for sources, input lists, samples and shards; and what it may touch: owner, lock,
published files, clean.

This room knows no step. It imports no other room.
"""
