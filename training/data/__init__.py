"""What a run trains on: the manifest that curation wrote, its buckets of aspect ratio and duration, the plan that says
which clips each step has, and the reading of those clips. The plan is a pure function of manifest, recipe and seed,
so that every rank, encode server and resumed run knows the samples of any step without being told.
"""
