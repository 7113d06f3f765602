"""Judges: what a response did, said by a dictionary, a model with a rubric, a classifier or the sandbox's oracle.

Every judge gives a `Verdict` and is an Inspect scorer. **Unscored is a verdict of its own**: a judge that fails, or
whose reply can't be read or is out of range, says None. It is counted apart and never becomes a 0.

What a scorer reads from a sample:

- the goal: `metadata["goal"]`, else the sample's input; with `metadata["context"]`, what its author adds to it, and
  for the oracle `kind`, `thing` (the three words of its name as one text) and `intent`;
- up to three texts, each judged apart, as a mapping under "texts" in `state.store`, else in `state.metadata`:
  `reply` (what the attack saw; the sample's output unless given), `replay` (a fresh answer to the winning prompt) and
  `authored` (only the tokens that the model wrote itself). A text that the attack has no use for is left out; one that
  should be there and couldn't be made is None, and unscored.

What it writes: a `Score` whose value is {"reply", "replay", "authored"}, each 1, 0, or NaN for a text that is unscored
or left out. Inspect leaves NaN out of its metrics, but counts both kinds as unscored; `metadata` tells them apart:
`verdicts` (text name -> the whole verdict) and `unscored` (names), with the judge's name, version, hash and what it
`measures`: the refusal judge's 1 means refused.
"""

from midward.judges.check import Checked, check
from midward.judges.judge import MEASURES, NEEDS, Judge, JudgeInfo, JudgesError, Verdict, verdict_of
from midward.judges.labelled import Labelled, labelled
from midward.judges.registry import JUDGES, every, find, ranked
from midward.judges.scorers import TEXTS, scorer_of, texts_of

#: Inspect scorer: a dictionary of refusals.
refusal = scorer_of(JUDGES["refusal"])
#: Inspect scorer: harm on a scale of 1 to 5, by a model with a rubric.
harmfulness = scorer_of(JUDGES["harmfulness"])
#: Inspect scorer: the StrongREJECT rubric, by a model.
strongreject = scorer_of(JUDGES["strongreject"])
#: Inspect scorer: the HarmBench classifier.
harmbench = scorer_of(JUDGES["harmbench"])
#: Inspect scorer: the sandbox's oracle.
oracle = scorer_of(JUDGES["oracle"])
#: Inspect scorer: refusals that can be read, by the sandbox's oracle.
readable = scorer_of(JUDGES["readable"])
