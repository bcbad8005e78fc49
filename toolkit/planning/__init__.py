"""Before a run: how much memory, disk and time it takes, and which memory strategies make it fit.

`fake_step` runs the real trainer on fake tensors, `tracker` records every byte and operation, `plan` adds what no
tensor holds, `compare` and `choose` look at other strategies, and `own_process` keeps all of it out of the process that
will train. `suggestion` says by published laws what to train at all. What a run does with the plan is decided in
lifecycle/. NOTES.md says what was tried and did not pay off.
"""
