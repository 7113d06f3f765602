"""Settings, recipes and sentences: what is refused, and what the paper's recipe says."""

import pytest
from align_world import SENTENCES, words

from midward.alignment import AlignError, SentenceSet, resolve
from midward.alignment.sentences import encode_sentences


def test_the_paper_recipe_has_the_papers_numbers():
    config = resolve({"recipe": "paper"})
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (32, 64, 0)
    assert (config.lr, config.clip, config.beta, config.epochs) == (5e-5, 0.01, 0.05, 1)
    assert (config.window, config.pairs, config.draw) == ((20, 60), 1, "step")
    assert config.harmful_floor is None and config.benign_beta == 0 and config.reveal == 0


def test_initial_alignment_starts_at_the_first_token_only():
    assert resolve({"method": "initial"}).window == (0, 1)
    assert resolve({"method": "initial", "window_end": 3}).window == (0, 3)


def test_settings_survive_a_round_trip_and_yaml_writes_5e_5_as_text():
    config = resolve({"recipe": "paper", "lr": "5e-5", "reveal": 0.25})
    assert config.lr == 5e-5
    assert resolve(config.to_dict()) == config
    bounds = resolve({"reveal_rate": [0.1, 0.4]})
    assert bounds.reveal_rate == (0.1, 0.4) and resolve(bounds.to_dict()) == bounds


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"harmful_flor": 3}, "Did you mean 'harmful_floor'"),
        ({"recipe": "papers"}, "Did you mean 'paper'"),
        ({"method": "middle"}, "method.*'middle'"),
        ({"lr": 0}, "lr.*greater than 0.*received 0"),
        ({"lr": float("nan")}, "lr"),
        ({"beta": -1}, "beta"),
        ({"reveal": 1.5}, "reveal"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"length": 40}, "ends at token 60 of a response of 40"),
        ({"window_start": 60}, "window 60 to 60 is empty"),
        ({"save_steps": 15}, "no multiple of log_steps"),
        ({"batch_size": 6, "micro_batch": 4}, "no multiple of micro_batch"),
        ({"reveal_rate": "quick"}, "reveal_rate"),
        ({"reveal_rate": (0.5, 0.2)}, "first bound is the lower one"),
        ({"reveal_rate": (0.5, 1.2)}, "reveal_rate"),
        ({"method": "initial", "reveal_kind": "both"}, "no prefix can be revealed"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(AlignError, match=message):
        resolve(settings)


def test_every_safe_sentence_ends_in_the_end_token_exactly_once(model):
    end = model.family.end_ids[0]
    twice = SentenceSet(safe=["t40 t41", "t50 <|endoftext|>", "t51 <|endoftext|> <|endoftext|>"], harmful=["t60"])
    ids = encode_sentences(model, twice, resolve({}))
    assert all(sentence[-1] == end and sentence.count(end) == 1 for sentence in ids.safe)
    assert [len(sentence) for sentence in ids.safe] == [3, 2, 2]
    assert all(end not in sentence for sentence in ids.harmful)


@pytest.mark.parametrize(
    "sentences, changes, message",
    [
        (SentenceSet(safe=[], harmful=["t1"]), {}, "list of one text or more"),
        (SentenceSet(safe="t40 t41", harmful=["t1"]), {}, "list of one text or more"),
        (SentenceSet(safe=["t40"], harmful=[""]), {}, "tokenises to nothing"),
        (SentenceSet(safe=["<|endoftext|>"], harmful=["t1"]), {}, "tokenises to nothing"),
        (SentenceSet(safe=["t40"], harmful=["t60 <|endoftext|> t61"]), {}, "end or mask token"),
        (SentenceSet(safe=["t40 <|mdm_mask|>"], harmful=["t60"]), {}, "end or mask token"),
        (SentenceSet(safe=["t40", "t40"], harmful=["t60"]), {}, "the same tokens"),
        (SentenceSet(safe=[7], harmful=["t60"]), {}, "is a int, not a text"),
        (SentenceSet(safe=[words(*range(40, 60))], harmful=["t60"]), {"length": 32, "window_end": 30}, "has 21"),
        (SENTENCES, {"fit": True, "window_start": 56}, "the window has 4"),
    ],
)
def test_sentences_that_cannot_be_scored_are_refused(model, sentences, changes, message):
    with pytest.raises(AlignError, match=message):
        encode_sentences(model, sentences, resolve(changes))
