"""One index searched, and texts encoded, by the processes of a Ray cluster (extra ``ray``), on one machine or many."""

from d2llm.requirements import require

require("ray", "ray")

from d2llm.cluster.encoder import ClusterEncoder  # noqa: E402
from d2llm.cluster.index import ClusterIndex  # noqa: E402
from d2llm.cluster.workers import connect  # noqa: E402

__all__ = ["ClusterEncoder", "ClusterIndex", "connect"]
