"""How do prompts become text states, and how is a linear map of text states written into a pipeline?

tokenizer     token ids of prompts, and which tokens spell a concept
text_encoder  a CLIP text encoder in NumPy that computes each token of many prompts once
encode        prompts -> text states of a pipeline's own encoders, kept by content
conditioning  what a denoiser reads beside sample and timestep
text_map      the map that a closed-form edit is, and the ways to write it
low_rank      a map near the identity as two narrow factors
"""
