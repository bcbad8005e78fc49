"""The plugins that come with the toolkit, a folder for each kind, and beside them what several kinds share.

They use the public door: of toolkit they import `toolkit.api` alone. What holds for every plugin of a kind belongs in
toolkit/.
"""
