"""Attacks: published ways to make a model do what it should refuse, to be run on one's own model.

Each is one file: what it is (`AttackInfo`), its settings, its search; and an Inspect solver of its name (`solver_of`).
`Target` is the handle on the model under attack: it counts, keeps to the budget, and knows what the model can do.
"""

from typing import TYPE_CHECKING

from midward._front import front_door

if TYPE_CHECKING:
    from midward.attacks.attack import AttackInfo, Attempt, Offer
    from midward.attacks.capabilities import AttackError, Capability, CapabilityError
    from midward.attacks.registry import ATTACKS, every, find
    from midward.attacks.roles import RolePrompt, Roles
    from midward.attacks.solver import solver_of
    from midward.attacks.target import Ask, BudgetSpent, Reply, Target

__getattr__, __dir__, __all__ = front_door(__name__)
