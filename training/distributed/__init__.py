"""How a model is spread over ranks: who holds it together and who shares a sample (layout), what the machine says of it
(machine), the model as the machine wants it (prepare, weights), and what ranks do together (parallel,
sequence_parallel).
"""
