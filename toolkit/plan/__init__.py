"""Before a run: what it will take in memory, disk and time, and which strategies make it fit.

`step` runs one step of the real trainer on fake tensors, `ledger` writes down every byte and operation, `plan` adds
what no tensor holds, `compare` and `choose` look at other strategies. NOTES.md says what was tried and did not pay.
"""
