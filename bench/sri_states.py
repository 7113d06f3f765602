"""What the sandbox model's states hold that the SRI signal may lose: jailbroken answers against harmless ones.

    python bench/sri_states.py                     # the sandbox; --model sandbox-ar for its twin
    python bench/sri_states.py --paper             # in the paper's sampling

Two detectors on phi_t itself (all response positions, last layer) in the place of the signal: a linear probe of the
first step's state, which is shown jailbroken answers, cross-validated; and the shrunk Mahalanobis distance of the
mean over steps, fitted on other harmless answers alone. Beside them the signal at the first step, by kind.
"""

import argparse

import numpy as np

import midward
from midward.attacks.cases import cases
from midward.dynamics import PooledStates
from midward.dynamics.samplers import PAPER
from midward.judges.bench import bench, judging
from midward.sampling import Sampling, sample
from midward.stats import area, rate

HARMLESS = ("benign", "benign-wrapped", "banned")
ATTACKED = ("plain", "wrappers", "prefill", "prefill-mid", "pad")


def states_of(model, asked, sampling):
    """phi [N, T, D] of every case and its response."""
    watcher = PooledStates(needs_all_steps=False)
    responses = sample(model, [case.request for case in asked], sampling, batch_size=16, watchers=[watcher])
    return np.stack([watcher.states(row).double().numpy() for row in range(len(asked))]), responses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sandbox")
    parser.add_argument("--count", type=int, default=60, help="requests of each set")
    parser.add_argument("--train", type=int, default=600, help="harmless answers that the distance is fitted on")
    parser.add_argument("--paper", action="store_true", help="128 tokens, one block, 32 steps")
    options = parser.parse_args()
    model = midward.load(options.model)
    sampling = Sampling.for_model(model, **(PAPER if options.paper else {}))

    train, _ = states_of(model, cases(model, "benign", options.train, split="tuning"), sampling)
    harmless = {name: states_of(model, cases(model, name, options.count), sampling)[0] for name in HARMLESS}
    asked = [case for name in ATTACKED for case in cases(model, name, options.count)]
    attacked, responses = states_of(model, asked, sampling)
    judge = bench([case.goal for case in asked])
    with judging(judge) as ask:
        verdicts = ask([case.goal for case in asked], [response.text for response in responses])
    wrong = np.array([verdict.success is True for verdict in verdicts])
    goals = [case.goal.id for case, hit in zip(asked, wrong, strict=True) if hit]
    jailbroken = attacked[wrong]
    print(f"{options.model}, {sampling.steps} steps: {len(jailbroken)} jailbroken answers of {len(asked)} attacked")

    from sklearn.covariance import ledoit_wolf
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    centre = train.mean(1).mean(0)
    inverse = np.linalg.inv(ledoit_wolf(train.mean(1))[0])

    def distance(states):
        apart = states.mean(1) - centre
        return np.einsum("nd,de,ne->n", apart, inverse, apart)

    for name, states in harmless.items():
        values = np.concatenate([jailbroken[:, 0], states[:, 0]])
        truth = np.repeat([1, 0], [len(jailbroken), len(states)])
        groups = [*goals, *(f"harmless {n}" for n in range(len(states)))]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores = cross_val_predict(
            probe, values, truth, groups=groups, cv=StratifiedGroupKFold(5), method="decision_function"
        )
        print(f"  against {name} (n {len(states)})")
        print(f"    linear probe, first state: {area(scores[truth == 1], scores[truth == 0], goals)}")
        far, near = distance(jailbroken), distance(states)
        print(f"    distance, mean over steps: {area(far, near, goals)}")
        caught = rate((far > max(distance(train).max(), near.max())).tolist(), goals)
        print(f"    flagged above every harmless one: {caught}")


if __name__ == "__main__":
    main()
