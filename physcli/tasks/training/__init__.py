"""Training: one loop (`loop.py`) for whatever is trained, and one file for each thing that is.

All randomness is a function of (seed, number of the sample), never of what ran before. So any number of processes sees
the same samples, and a resumed run needs nothing but weights, optimizer moments and the step it stopped at.
"""
