"""What one request may ask for, and how many may wait."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client from taking the machine."""

    #: Bytes of a request's body.
    body: int = 8 << 20
    #: Texts of a request.
    texts: int = 2048
    #: Characters of a text; the student reads its first tokens only.
    characters: int = 100_000
    #: Hits of a search.
    hits: int = 1000
    #: Texts that wait to be encoded, over all requests; beyond it clients are told to come back.
    waiting: int = 8192
    #: Searches that wait or run.
    searches: int = 256
    #: Searches that wait for the teacher or are judged by it, one after the other.
    judged: int = 16
    #: Seconds in which a request is answered, or given up.
    seconds: float = 60.0
    #: Seconds in which texts of several requests are gathered into one batch, and most texts of such a batch.
    gather: float = 0.003
    batch: int = 256
