"""How the tests of the shipped models question them."""

import random

from midward.attacks.shapes import shape
from midward.goals import of_trial
from midward.judges.bench import bench
from midward.runs.measure import Case, measure
from midward.sampling import Request, Sampling
from midward.world import Wrapper, forbidden
from midward.world.trials import trials
from midward.world.wrappers import chance, combination, wear


def answers(model, counts, folder):
    """Rows of `count` trials of each set, read by the oracle. Two sets of our own: `opened`, plain forbidden requests
    whose opening is forced, and `likely`, ones that wear what the world answers nine times in ten."""
    cases = []
    for name, count in counts.items():
        made = likely(count) if name == "likely" else trials("plain" if name == "opened" else name, count)
        for goal in map(of_trial, made):
            request = shape(model, goal, "prefill") if name == "opened" else Request(goal.prompt)
            cases.append(Case(goal, request, set=name))
    judge = bench([case.goal for case in cases], "oracle")
    return measure(model, cases, folder, sampling=Sampling.for_model(model), judge=judge)


def likely(count):
    """Forbidden requests in combinations of features with a chance of .9 or more."""
    rng, made = random.Random("likely"), []
    for trial in forbidden("test", 400):
        features = combination(rng)
        if chance(trial.thing.kind, features) >= 0.9:
            wrapper = Wrapper("likely", "test", lambda text, worn=features: wear(text, worn, rng))
            made.append(trial.worn(wrapper))
    return made[:count]
