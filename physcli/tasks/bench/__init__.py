"""`physcli bench …`: how fast the parts are, on this machine, as times and as ratios measured in one run.

Machines differ and drift; ratios of things timed in turn within one run do not. Every ratio here is a median over
rounds in which its two sides alternate.
"""
