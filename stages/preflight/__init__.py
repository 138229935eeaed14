"""Everything that later stages ask for, checked before the first epoch: a training of days must not end in a refusal.

:func:`stages.preflight.check.require` is called by `stages.train`; the flow and `stages.validate` use the parts that
need no contact or no data. A server that is away is a warning: the training keeps its records until it is back.
"""
