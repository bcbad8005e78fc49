"""A finished model at work: text that it generates, and its loss on documents that it has not seen.

Evaluations during training belong in training/.
"""
