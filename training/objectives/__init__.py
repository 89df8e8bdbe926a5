"""What training minimises: a function from a batch to its loss. Flow matching, of pre-training (report, section 5), is
here; a new objective is a file beside it. Nothing in this room knows of ranks, files or recipes.
"""
