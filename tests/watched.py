"""A model's decisions, watched."""

from modeling_faseg.decisions import Decisions


class Watched(Decisions):
    """Decides as the model does; `probs` keeps the mask probabilities of every decision in turn."""

    def __init__(self):
        self.probs = []

    def below(self, probs, threshold):
        self.probs.append(probs)
        return super().below(probs, threshold)
