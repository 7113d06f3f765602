"""The terminal player draws what the sampler does and obeys nothing in the model's text."""

import io

from rich.console import Console

from midward import Forced, Request, Sampling, Trace, sample
from midward.reports import player as module
from midward.reports.player import Player

SETTINGS = Sampling(length=8, steps=4, end="keep")


def console(terminal=False):
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=100,
        color_system="standard" if terminal else None,
        legacy_windows=False,
    )


def test_final_state_is_the_response(lively):
    screen = console()
    with Player(screen) as player:
        responses = sample(lively, ["t10", "t11 t12"], SETTINGS, watchers=[player])
    lines = [line.plain for line in player.render().renderables]
    assert lines[0] == "step 4 of 4, positions 0-7"
    for line, response in zip(lines[1:], responses, strict=True):
        drawn = "".join(lively.tokenizer.decode([token]) for token in response.raw_ids)
        assert line == drawn
        assert drawn in screen.file.getvalue()


def test_styles_follow_the_step(lively):
    looks = []

    class Spy(Player):
        def on_step(self, step):
            super().on_step(step)
            line = self.render().renderables[1]
            spans = [(span.style, line.plain[span.start : span.end]) for span in line.spans]
            looks.append((step.new[0].sum().item(), spans))

    request = Request("t10", forced=(Forced(2, (40, 41)),))
    with Spy(console(terminal=True)) as player:
        sample(lively, [request], SETTINGS, watchers=[player])
    for new, spans in looks:
        assert sum(style == module.NEW for style, _ in spans) == new
        assert [text for style, text in spans if style == module.FORCED] == ["t40", "t41"]
    masks = [sum(style in (module.MASKED, module.PREDICTED) for style, _ in spans) for _, spans in looks]
    assert masks[-1] == 0 and masks == sorted(masks, reverse=True)


def test_end_tokens_are_small_marks(lively):
    """A response that ends early isn't a wall of <|endoftext|>; a forced one is shown as it is."""
    end = lively.family.end_ids[0]
    ids, stands = [40, 41, end, end, end, 2], [True] * 5 + [False]
    line = module._draw(lively, ids, stands, [False] * 6, [True] + [False] * 5, None)
    assert line.plain == f"t40t41{module.END_MARK * 3}{module.MASK_MARK}"
    forced = module._draw(lively, [end], [True], [False], [True], None)
    assert forced.plain == lively.tokenizer.decode([end]) != module.END_MARK


def test_a_step_stays_on_the_screen_for_the_pace(lively, monkeypatch):
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", sleep)
    with Player(console(), pace=0.25) as player:
        sample(lively, ["t10"], SETTINGS, watchers=[player])
    assert slept == [0, 0.25, 0.25, 0.25]


def test_model_text_is_never_obeyed(lively, monkeypatch):
    hostile = "[bold red]x[/] \x1b[2J\r\x07"
    monkeypatch.setattr(type(lively.tokenizer), "decode", lambda self, ids, **options: hostile * len(ids))
    screen = console()
    with Player(screen) as player:
        sample(lively, [[5, 6]], SETTINGS, watchers=[player])
    shown = player.render().renderables[1].plain
    assert "[bold red]x[/]" in shown  # markup stays text
    assert not {"\x1b", "\r", "\x07"} & set(screen.file.getvalue())


def test_player_and_trace_together(lively):
    trace = Trace()
    with Player(console()) as player:
        watched = sample(lively, ["t10"], SETTINGS, watchers=[player, trace])
    assert watched == sample(lively, ["t10"], SETTINGS)
    assert len(trace.order(0)) == 8
