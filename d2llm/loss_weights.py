"""What each of the losses weighs in a run."""

from dataclasses import dataclass, fields

from d2llm.errors import InputError, shown

IN_BATCH_FORMS = ("mean", "paper")
#: Losses of :mod:`d2llm.rank_losses`.
RANKS = ("ranknet", "listnet", "margin_mse", "adr_mse")


def check_form(name: str, form: str) -> None:
    """Make sure that a form of the in-batch loss is known.

    Raises:
        InputError: naming the argument.
    """
    if form not in IN_BATCH_FORMS:
        raise InputError(f"{name}: expected one of {IN_BATCH_FORMS}, got {form!r}")


@dataclass(frozen=True)
class LossWeights:
    """Weights and temperatures of the total loss (the published run's, but for ``in_batch_form``).

    Raises:
        InputError: for a negative or non-finite weight, a share above 1, a temperature or scale that is not above 0, or
            an unknown form or rank loss.
    """

    #: Weight of the in-batch cross-entropy.
    in_batch: float = 1.0
    #: ``mean``: cross-entropy of a query, whatever the batch size; ``paper``: the literal 1/B² Σ, B times weaker.
    in_batch_form: str = "mean"
    #: Weight of the same cross-entropy of the embeddings' cosines, in the same form.
    cosine: float = 0.0
    #: Weight of contrastive imitation.
    alpha: float = 1.0
    #: Weight of rank imitation by correlation.
    beta: float = 1.0
    #: Weight of pairwise rank imitation (hard against in-batch negatives).
    gamma: float = 0.01
    #: Weight of feature imitation.
    eta: float = 0.001
    #: Weight of the contrastive loss on labels, which hard negatives without a teacher's judgement get.
    labels: float = 1.0
    #: From 0 to 1: how far labels stand in for the teacher where it has judged.
    label_share: float = 0.0
    #: One more loss on the teacher's order or margins of a group, one of ``RANKS``; None for none.
    rank: str | None = None
    #: Its weight.
    rank_weight: float = 1.0
    #: Divisor of the student's logits in it.
    rank_temperature: float = 1.0
    #: Temperature of contrastive imitation and of the contrastive loss on labels.
    temperature: float = 1.0
    #: Temperature of the in-batch cross-entropy.
    in_batch_temperature: float = 1.0
    #: Temperature of the cross-entropy of the cosines.
    cosine_temperature: float = 0.05
    #: Divisor of the teacher's score gaps in pairwise rank imitation.
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive = ("temperature", "in_batch_temperature", "cosine_temperature", "rank_temperature", "scale")
        check_form("in_batch_form", self.in_batch_form)
        if self.rank not in (None, *RANKS):
            raise InputError(f"rank: expected one of {RANKS} or null, got {shown(self.rank)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("in_batch_form", "rank"):
                continue
            if not 0 <= value < float("inf") or (field.name in positive and value == 0):
                expected = "a positive number" if field.name in positive else "a number of at least 0"
                raise InputError(f"{field.name}: expected {expected}, got {value!r}")
        if self.label_share > 1:
            raise InputError(f"label_share: expected a number from 0 to 1, got {self.label_share!r}")


DEFAULTS = LossWeights()
