"""The watcher that tests make theirs."""


class Watching:
    """Calls `start` with the canvas of each batch and `step` with each step; a subclass may do either itself."""

    def __init__(self, step=lambda step: None, start=lambda canvas: None, needs_all_steps=False):
        self.on_step, self.on_start, self.needs_all_steps = step, start, needs_all_steps

    def on_end(self, canvas):
        pass
