"""The rules of structured dual propagation, for each primitive that has one."""

from fwdgrad.core import contractions, control_flow, layouts

RULES = {**contractions.RULES, **layouts.RULES, **control_flow.RULES}
