"""A student in Vespa: a schema whose second phase is the interaction module, and what is fed to it and asked of it.

A passage is kept as its half of the first layer, (F,), as in an index here; the other layers are tensor expressions.
The first phase is the index's surrogate, an inner product of int8 vectors, or BM25 where there is none.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2llm.errors import InputError
from d2llm.files import atomic_path, write_json
from d2llm.index import Index
from d2llm.student import D2LLM
from d2llm.tasks import ASYM, task_index

SCHEMA = "passage"
#: Passages that the second phase scores where no certificate says how many are needed.
_RERANKED = 1000
#: What the certificate is asked for: a mean share of the exact best ten.
_BEST, _RECALL = 10, 0.99
#: Rows brought from the index at once.
_ROWS = 4096


def write_application(
    student: D2LLM, folder: str | os.PathLike[str], index: Index | None = None, task: str = ASYM
) -> None:
    """Write ``schemas/passage.sd`` and ``constants/``, to be laid into an application; the folder appears when whole.

    Args:
        student: whose interaction module ranks.
        folder: to be made.
        index: of the passages; its surrogate, if it was fitted for this branch, becomes the first phase, and its
            certificate decides how many passages each node scores in full.
        task: ``asym`` or ``sym``.

    Raises:
        InputError: if the folder exists, or for an unknown task.
    """
    number = task_index(task)
    if Path(folder).exists():
        raise InputError(f"folder: expected one that is not there yet, got {os.fspath(folder)}")
    projection, last = student.iem.get_submodule(f"proj{number}"), student.iem.linear2
    width = student.iem.hidden
    constants = {
        # Vespa orders the cells of a dense tensor by the names of its dimensions: f, what comes in, before g.
        "iem_weight": (f"tensor<float>(f[{width}],g[{width}])", projection.get_parameter("weight").T),
        "iem_bias": (f"tensor<float>(g[{width}])", projection.get_parameter("bias")),
        "iem_output": (f"tensor<float>(g[{width}])", last.weight[0]),
    }
    surrogate = None if index is None else index.surrogate(task)
    rank = None if surrogate is None else surrogate.query.shape[0]
    reranked = None if index is None else index.certified(_BEST, _RECALL, task)
    text = _schema(
        width,
        rank,
        reranked or _RERANKED,
        float(last.bias.detach()),
        {name: kind for name, (kind, _) in constants.items()},
    )
    with atomic_path(folder) as target:
        for name in ("schemas", "constants"):
            (target / name).mkdir(parents=True)
        (target / "schemas" / f"{SCHEMA}.sd").write_text(text, encoding="utf-8")
        for name, (_, values) in constants.items():
            cells = values.detach().float().cpu().flatten().tolist()
            write_json(target / "constants" / f"{name}.json", {"values": cells})


def feed(index: Index, namespace: str = "d2llm", task: str = ASYM) -> Iterator[dict[str, Any]]:
    """Every passage of an index as an operation for Vespa's clients, to be written a line each.

    Args:
        index: whose texts, projections and surrogate are fed.
        namespace: of the documents' ids.
        task: of the application.
    """
    maps = index.surrogate(task)
    for passages, projected in index.rows(_ROWS):
        mapped = None if maps is None else maps.passages(projected)
        for row, passage in enumerate(passages):
            fields: dict[str, Any] = {"id": passage.id, "text": passage.text or ""}
            fields["projected"] = _values(projected[row])
            if mapped is not None:
                fields["surrogate"] = _values(mapped[row])
            yield {"put": f"id:{namespace}:{SCHEMA}::{passage.id}", "fields": fields}


@torch.inference_mode()
def query(
    student: D2LLM, text: str, index: Index | None = None, task: str = ASYM, hits: int = 10, candidates: int = 1000
) -> dict[str, Any]:
    """The body of a search: what is sent to ``/search/``.

    Args:
        student: encodes the query.
        text: of the query.
        index: the one that the application was written with.
        task: of the application.
        hits: passages returned.
        candidates: passages that the nearest-neighbour search brings; not read without a surrogate.

    Raises:
        InputError: for an empty text.
    """
    vector = student.encode([text], "query", convert_to="torch").to(student.head_dtype)
    a = student.iem.project_queries(vector).float().cpu()
    body: dict[str, Any] = {"hits": hits, "ranking": "iem", "input.query(projected)": a[0].tolist()}
    maps = None if index is None else index.surrogate(task)
    if maps is None:
        return {**body, "yql": f"select id, text from {SCHEMA} where userQuery()", "query": text, "type": "any"}
    near = f"{{targetHits: {candidates}}}nearestNeighbor(surrogate, surrogate)"
    surrogate = maps.queries(a)[0].tolist()
    return {**body, "yql": f"select id, text from {SCHEMA} where {near}", "input.query(surrogate)": surrogate}


def _values(row: Tensor) -> dict[str, Any]:
    return {"values": row.tolist()}


def _schema(width: int, rank: int | None, reranked: int, bias: float, constants: dict[str, str]) -> str:
    declared = "\n".join(
        f"    constant {name} {{\n        file: constants/{name}.json\n        type: {kind}\n    }}"
        for name, kind in constants.items()
    )
    field, given, first = "", "", "bm25(text)"
    if rank is not None:
        field, first = _SURROGATE % rank, "sum(query(surrogate) * attribute(surrogate))"
        given = f"\n            query(surrogate) tensor<int8>(r[{rank}])"
    return _SCHEMA.format(
        name=SCHEMA,
        width=width,
        surrogate=field,
        constants=declared,
        given=given,
        first=first,
        reranked=reranked,
        bias=json.dumps(bias),
    )


_SURROGATE = """
        field surrogate type tensor<int8>(r[%d]) {
            indexing: attribute | index
            attribute {
                distance-metric: dotproduct
            }
        }"""
_SCHEMA = """schema {name} {{
    document {name} {{
        field id type string {{
            indexing: attribute | summary
        }}
        field text type string {{
            indexing: index | summary
            index: enable-bm25
        }}
        field projected type tensor<float>(f[{width}]) {{
            indexing: attribute
        }}{surrogate}
    }}
    fieldset default {{
        fields: text
    }}
{constants}
    rank-profile iem {{
        inputs {{
            query(projected) tensor<float>(f[{width}]){given}
        }}
        function hidden() {{
            expression: relu(query(projected) + attribute(projected))
        }}
        function features() {{
            expression: relu(sum(hidden * constant(iem_weight), f) + constant(iem_bias))
        }}
        first-phase {{
            expression: {first}
        }}
        second-phase {{
            rerank-count: {reranked}
            expression: sum(features * constant(iem_output)) + {bias}
        }}
    }}
}}
"""
