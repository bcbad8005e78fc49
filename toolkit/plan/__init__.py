"""Before a run: how much memory, disk and time it will take, and which strategies make it fit.

`step` runs the real trainer on fake tensors, `ledger` records every byte and operation, `plan` adds what no tensor
holds, `compare` and `choose` look at other strategies. NOTES.md says what was tried and did not pay off.
"""
