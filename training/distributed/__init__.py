"""How the ranks of a run share its work, applied to the model from outside: which ranks hold a copy of the model
together (FSDP), which share the tokens of a sample (Ulysses), how starting weights come onto them, and what they
tell each other. The model's own code has no parallelism in it.
"""
