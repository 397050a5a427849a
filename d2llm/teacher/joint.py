"""A teacher and a student as one judge of a search's candidates.

A teacher reads one pair at a time; a student has seen every passage. By how much it puts a candidate above the best of
the others is told to nobody by the teacher's answer, and the two together know more than either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from d2llm.data.example import Example, text_id
from d2llm.evaluation.scorers import Scorer, StudentEncoder, Vectors, iem_scorer
from d2llm.student import D2LLM
from d2llm.tasks import task_index
from d2llm.teacher.calibration import Labelled, slopes
from d2llm.teacher.model import NO, YES
from d2llm.teacher.scores import Pair, ScoreTable
from d2llm_kernels import IEM


@dataclass(frozen=True)
class StudentJudge:
    """A student's interaction module over some queries and passages.

    Args:
        iem: the module.
        vectors: of the queries and the passages.
        queries, passages: the texts, Nq and Np, in the vectors' order.
        task: "sym" or "asym".
    """

    iem: IEM
    vectors: Vectors
    queries: Sequence[str]
    passages: Sequence[str]
    task: str

    @classmethod
    def of(cls, student: D2LLM, queries: Sequence[str], passages: Sequence[str], task: str) -> "StudentJudge":
        """Encode both.

        Raises:
            InputError: for an empty text.
        """
        vectors = Vectors.of(StudentEncoder(student), queries, passages)
        return cls(student.iem, vectors, queries, passages, task)

    @property
    def scorer(self) -> Scorer:
        """What finds candidates."""
        return iem_scorer("student", self.iem, self.vectors, self.task)

    @torch.inference_mode()
    def leads(self, candidates: Sequence[Sequence[str]]) -> dict[Pair, float]:
        """Each candidate's logit less the best other one's of the query, 0 where there is no other.

        Args:
            candidates: Nq lists of passages.
        """
        rows = {text: row for row, text in enumerate(self.passages)}
        dtype, branch = self.iem.linear1.weight.dtype, task_index(self.task)
        found: dict[Pair, float] = {}
        for number, (query, texts) in enumerate(zip(self.queries, candidates, strict=True)):
            if not texts:
                continue
            p = self.vectors.passages[[rows[text] for text in texts]].to(dtype)
            scores = self.iem.score_all(self.vectors.queries[number : number + 1].to(dtype), p, branch)[0].float()
            best = scores.topk(min(2, len(texts))).values
            others = torch.where(scores == best[0], best[-1], best[0])
            leads = (scores - others).tolist()
            found.update(((text_id(query), text_id(text)), lead) for text, lead in zip(texts, leads, strict=True))
        return found


def joint(table: ScoreTable, leads: dict[Pair, float], labelled: Sequence[Example]) -> ScoreTable:
    """One judge of both: log-odds that weigh the teacher's and the student's lead as labelled pairs say.

    The weights are fitted to every labelled pair together; they are two numbers.

    Args:
        table: the teacher's scores.
        leads: :meth:`StudentJudge.leads` of the same pairs.
        labelled: pairs among them, positives and negatives.

    Raises:
        InputError: where the table holds none of the labelled pairs.
    """
    student = ScoreTable(table.header, {pair: (lead, 0.0) for pair, lead in leads.items()})
    judges = table, student
    known = [Labelled.of(labelled, judge) for judge in judges]
    weights, _ = slopes(np.stack([each.odds for each in known], 1), known[0].relevant)

    def odds(pair: Pair) -> float:
        logits = [judge.logits(*pair) for judge in judges]
        return float(weights @ [found[YES] - found[NO] for found in logits if found is not None])

    return ScoreTable(table.header, {pair: (odds(pair), 0.0) for pair in leads})
