"""The attacks there are: ours, and those that packages add by an entry point of the group `midward.attacks`."""

from __future__ import annotations

from collections.abc import Mapping

from midward._plugins import Plugins, must_take
from midward.attacks.advprefix import ADVPREFIX, ADVPREFIX_ASK, ADVPREFIX_MID
from midward.attacks.anchoring import ANCHORING
from midward.attacks.aos import AOS
from midward.attacks.attack import AttackInfo
from midward.attacks.avatar import AVATAR
from midward.attacks.capabilities import AttackError
from midward.attacks.dia import DIA, DIA_PREFILL
from midward.attacks.dija import DIJA
from midward.attacks.direct import DIRECT
from midward.attacks.ept import EPT, EPT_MID
from midward.attacks.flip import FLIP, FLIP_BEST
from midward.attacks.maskforge import MASKFORGE
from midward.attacks.nesting import NESTING
from midward.attacks.pad import PAD
from midward.attacks.pair import PAIR
from midward.attacks.pal import PAL, RAL
from midward.attacks.post_context import POST_CONTEXT
from midward.attacks.prefill import PREFILL, PREFILL_MID
from midward.attacks.random_search import RANDOM_SEARCH
from midward.attacks.refusal_suppression import REFUSAL_BAN, REFUSAL_SUPPRESSION
from midward.attacks.replay import REPLAY
from midward.attacks.speakeasy import SPEAKEASY
from midward.attacks.tap import TAP, TAP_MID
from midward.attacks.taxonomy import by_taxonomy
from midward.attacks.trajhijack import TRAJHIJACK
from midward.attacks.wildjailbreak import WILDJAILBREAK
from midward.errors import InputError

_ONE_REQUEST = (DIRECT, PREFILL, PREFILL_MID, PAD, DIJA, FLIP, FLIP_BEST, REFUSAL_SUPPRESSION, REFUSAL_BAN, REPLAY)
_WRITTEN = (PAIR, TAP, TAP_MID, AOS, WILDJAILBREAK, DIA, DIA_PREFILL, SPEAKEASY, AVATAR)  # by models that play roles
_TOKENS = (EPT, EPT_MID, ADVPREFIX, ADVPREFIX_ASK, ADVPREFIX_MID, RANDOM_SEARCH, PAL, RAL)
_TRAJECTORY = (ANCHORING, TRAJHIJACK, POST_CONTEXT)
_FORMS = (NESTING, MASKFORGE)  # the request as a text of another form

#: The attacks of this package, by name.
ATTACKS: dict[str, AttackInfo] = {
    info.name: info for info in (*_ONE_REQUEST, *_WRITTEN, *_TOKENS, *_TRAJECTORY, *_FORMS)
}


def _check(info: AttackInfo) -> None:
    must_take("search", info.search, "attempt", "settings")
    calls = info.calls(info.settings())
    queries = calls.get("target") if isinstance(calls, Mapping) else None
    if not isinstance(queries, int) or queries < 1:
        raise InputError(f"has calls that give {calls!r}, no mapping with the most queries, 1 or more, as 'target'.")
    by_taxonomy(info.taxonomy)


_PLUGINS = Plugins("attack", AttackInfo, ATTACKS, AttackError, _check)
#: find(name): the attack of this name, ours or a package's. Raises AttackError for an unknown name, or one that
#: can't be loaded.
find = _PLUGINS.find

#: every(): all attacks by name; a package's that can't be loaded is its error.
every = _PLUGINS.every
