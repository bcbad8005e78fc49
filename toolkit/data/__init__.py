"""From documents to packed blocks of tokens, cached, and the account of where each token went.

Where documents come from is a plugin's matter; batches are made by the objective.
"""
