"""The step: components, Trainer, loss, loss guard, intervals, and how the optimizer takes its step.

When a run starts, resumes or ends is decided in lifecycle/; how a checkpoint reaches the disk, in storage/.
"""
