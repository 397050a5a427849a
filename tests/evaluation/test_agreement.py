"""Metrics agree with the tools of the field on random runs: ties, grades, unjudged and missing passages and queries."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from d2llm.evaluation import Run, Thresholds, nli_metrics, per_query, sts_metrics

KS = (1, 3, 10)
#: Our names and those of trec_eval, without their cuts.
NAMES = {"ndcg@": "ndcg_cut", "recall@": "recall", "p@": "P"}


def random_run(seed: int, ties: bool) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Twelve queries of up to 30 passages, some found, some judged from -1 to 3, one query without a run."""
    draw = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in (f"q{number}" for number in range(12)):
        names = [f"d{number}" for number in range(draw.integers(1, 31))]
        scores = draw.integers(0, 5, len(names)).astype(float) if ties else draw.permutation(len(names)).astype(float)
        run[query] = {name: score for name, score in zip(names, scores, strict=True) if draw.random() < 0.8}
        judged = [*names, "unknown"]
        qrels[query] = {name: int(draw.integers(-1, 4)) for name in judged if draw.random() < 0.5} | {"d0": 1}
    del run["q3"]
    return run, qrels


def against_the_system(run, qrels):
    """Scores without ties whose order is ours among equals: the less relevant passage first."""
    return {
        query: {
            name: float(-place)
            for place, name in enumerate(sorted(row, key=lambda name: (-row[name], max(qrels[query].get(name, 0), 0))))
        }
        for query, row in run.items()
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_trec_eval(seed, ties):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier is not installed; it is in d2llm[dev]")
    run, qrels = random_run(seed, ties)
    cuts = ",".join(map(str, KS))
    measures = {"recip_rank", "map", "ndcg", *(f"{name}.{cuts}" for name in NAMES.values())}
    # trec_eval knows no negative grades.
    clipped = {query: {name: max(grade, 0) for name, grade in row.items()} for query, row in qrels.items()}
    expected = pytrec_eval.RelevanceEvaluator(clipped, measures).evaluate(against_the_system(run, qrels))
    ours = {"mrr": "recip_rank", "map": "map", "ndcg": "ndcg"} | {
        f"{name}{k}": f"{theirs}_{k}" for name, theirs in NAMES.items() for k in KS
    }
    found = per_query(Run.of_mapping(run), qrels, list(ours))
    for name, theirs in ours.items():
        np.testing.assert_allclose(
            found[name], [expected.get(query, {}).get(theirs, 0.0) for query in qrels], atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("seed", range(4))
def test_scikit_learn_and_scipy(seed):
    draw = np.random.default_rng(seed)
    scores, labels = draw.integers(0, 6, 80).astype(float), draw.integers(0, 2, 80)
    found = nli_metrics(scores, labels, Thresholds(3.0, 2.0))
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores))
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["f1"] == pytest.approx(f1_score(labels, scores >= 2.0))
    assert found["accuracy"] == pytest.approx(np.mean((scores >= 3.0) == labels))
    gold = draw.integers(0, 5, 80).astype(float)
    assert sts_metrics(scores, gold)["spearman"] == pytest.approx(spearmanr(scores, gold).statistic)
    assert sts_metrics(scores, gold)["pearson"] == pytest.approx(pearsonr(scores, gold).statistic)
    # One relevant passage a query: average precision of a ranking without ties is that of scikit-learn.
    ranks, relevance = draw.permutation(80).astype(float), labels
    run = Run.of_mapping({"q": {f"d{number}": rank for number, rank in enumerate(ranks)}})
    qrels = {"q": {f"d{number}": int(grade) for number, grade in enumerate(relevance)}}
    assert per_query(run, qrels, ["map"])["map"][0] == pytest.approx(average_precision_score(relevance, ranks))
