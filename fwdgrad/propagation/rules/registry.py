"""The rules of structured dual propagation, for each primitive that has one."""

from typing import Any

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.propagation.record import reason_of_loss
from fwdgrad.propagation.rules import blocks as block_rules
from fwdgrad.propagation.rules import contractions, control_flow, joins, picks, structural
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import Tangent


def _with_blocks(of_blocks: Rule, rule: Rule | None) -> Rule:
    """A rule that goes by `of_blocks` where there are some and it can, else by `rule`."""

    def choose(context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]) -> Any:
        if any(isinstance(t, Blocks) for t in tangents):
            result = of_blocks(context, equation, primals, tangents)
            cut = [t for t in tangents if isinstance(t, Blocks)]
            if result is not NotImplemented:
                for t in cut:
                    context.observe(equation, t)
                return result
            reasons = {id(t): reason_of_loss(equation, tangents, t, has_rule=True) for t in cut}
            tangents = [
                context.written_out(equation, t, reasons[id(t)]) if isinstance(t, Blocks) else t
                for t in tangents
            ]
        return NotImplemented if rule is None else rule(context, equation, primals, tangents)

    # For records: the forms of tangents of which some are kept.
    choose.forms = (Blocks,) if rule is None else (Blocks, Factored)  # type: ignore[attr-defined]
    return choose


_ROOMS = (contractions, structural, joins, picks, control_flow)
_OTHERS = {name: rule for room in _ROOMS for name, rule in room.RULES.items()}
RULES: dict[str, Rule] = {
    **_OTHERS,
    **{name: _with_blocks(rule, _OTHERS.get(name)) for name, rule in block_rules.RULES.items()},
}
