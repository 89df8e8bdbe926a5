"""Where clips become latents and captions become embeddings: in the trainer itself, or on encode servers that data
ranks fetch from ahead of training. The messages, the client and its buffer, and the server live here. Who encoded a
batch makes no difference to what is in it, and each answer is checked against the plan.
"""
