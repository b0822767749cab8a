"""Ways to interfere with a training run, or with the folder that it leaves."""

from scripts.storage import atomic
from scripts.training import loop


def at_step(monkeypatch, step, action):
    """Does something in the middle of the training step that follows `step`."""
    original = loop.agree

    def agree(this, *args):
        if this.progress.step == step:
            action()
        return original(this, *args)

    monkeypatch.setattr(loop, "agree", agree)


def republish(folder):
    """Makes a folder that was changed whole again."""
    folder.rename(atomic.hidden_name(folder, "partial"))
    atomic.publish(folder)
