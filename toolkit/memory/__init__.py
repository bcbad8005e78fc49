"""Memory that runs short or out: smaller steps, limits for the next attempt, readings, the allocator.

The memory strategies of a recipe are in recipe/ and in plugins; what a run will take is estimated in planning/.
"""
