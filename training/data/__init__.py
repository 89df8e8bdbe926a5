"""What is trained on: the manifest as a machine maps it, which clips a stage takes of it, which of them a step has, and
their pixels. Nothing here knows of models, devices or ranks beyond how many there are."""
