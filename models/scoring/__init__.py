"""The networks that judge pictures and videos: how preferred, how well aligned, how well moving.

Each file holds one published network with the keys of its checkpoint, a function from what it was published for (pixels
and token ids) to its scores, and how its weights load. Curation, post-training's rewards and evaluation all use these.
"""
