"""How the tests of the shipped models question them."""

from midward.goals import of_trial
from midward.judges.bench import bench
from midward.runs.measure import Case, measure
from midward.sampling import Request, Sampling
from midward.world.trials import trials


def answers(model, counts, folder):
    """Rows of `count` trials of each set, read by the oracle."""
    made = [(name, trial) for name, count in counts.items() for trial in trials(name, count)]
    cases = [Case(of_trial(trial), Request(trial.text), set=name) for name, trial in made]
    judge = bench([case.goal for case in cases], "oracle")
    return measure(model, cases, folder, sampling=Sampling.for_model(model), judge=judge)
