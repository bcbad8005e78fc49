"""Models that come with the toolkit: published weights, or random ones of a given size or shape.

Memory strategies change a model in memory/, after it was built; the loss is the core's.
"""
