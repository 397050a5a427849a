"""Making what the package ships: ``python -m d2llm.demo.make`` runs every step that has no result yet.

The steps: train the student, embed the library with it, tune the teacher on the student's mistakes, judge it on
held-out groups, score. Each leaves its result in the work folder and in ``d2llm/assets``; killed, it goes on where it
was. On two cores the whole takes two to three hours, the student's part of it half an hour; where there is an
accelerator, all of it computes there, for which ``student/train.jsonl`` may be brought along in the work folder.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from d2llm.compact import shrink
from d2llm.data.docstrings import by_name, hold_out, standard_library_functions, standard_library_pairs
from d2llm.data.example import text_id
from d2llm.demo.corpus import kept_examples
from d2llm.demo.data import load_data
from d2llm.demo.encoder import TRAINING_FILE, make
from d2llm.demo.judgements import rerank_pairs
from d2llm.demo.recipe import RERANKED, SCORED_EXAMPLES
from d2llm.demo.teacher import tune_teacher
from d2llm.devices import best_device
from d2llm.evaluation.systems import bm25, student_mrr
from d2llm.files import atomic_path, write_json
from d2llm.shipped import BASE_MODEL, DOCUMENTED_VECTORS, SCORES, STUDENT, VECTORS
from d2llm.shipped import TEACHER as TEACHER_FOLDER
from d2llm.student import D2LLM
from d2llm.teacher.adapter import save_adapter
from d2llm.teacher.groups import make_groups
from d2llm.teacher.model import Teacher
from d2llm.teacher.scoring import collect, plan_groups, plan_pairs, score

#: Held-out groups that the teacher is judged on, and the negatives in each: BM25-hard and random.
JUDGED_GROUPS, JUDGED_HARD, JUDGED_RANDOM = 250, 2, 2


def make_teacher(work: Path) -> None:
    """Tune the teacher on its student's mistakes and ship its adapter in float16."""
    if TEACHER_FOLDER.is_dir():
        return
    examples = kept_examples(work / "student" / TRAINING_FILE)
    teacher = tune_teacher(_shipped_student(), examples, work / "teacher")
    save_adapter(teacher.decoder, teacher.settings(), TEACHER_FOLDER, torch.float16)


def judge_teacher(work: Path, teacher: Teacher) -> dict[str, float]:
    """ROC-AUC of the teacher on held-out queries: against BM25-hard negatives, random ones, and both."""
    pairs = standard_library_pairs()
    _, held_out = hold_out(pairs)
    groups = make_groups(
        held_out, [pair.positive for pair in pairs], hard=JUDGED_HARD, easy=JUDGED_RANDOM, positives=pairs
    )[:JUDGED_GROUPS]
    table = collect(score(teacher, list(plan_groups(groups)), work / "judged"))
    s = np.array([[table.probability(text_id(g.query), text_id(p)) for p in g.passages] for g in groups])

    def auc(columns: slice) -> float:
        negatives = s[:, columns].ravel()
        labels = np.r_[np.ones(len(s)), np.zeros(len(negatives))]
        return float(roc_auc_score(labels, np.r_[s[:, 0], negatives]))

    hard = 1 + JUDGED_HARD
    found = {"hard": auc(slice(1, hard)), "random": auc(slice(hard, None)), "both": auc(slice(1, None))}
    report = {"queries": len(groups), "hard_a_query": JUDGED_HARD, "random_a_query": JUDGED_RANDOM, "roc_auc": found}
    write_json(work / "teacher-auc.json", report)
    print(report)
    return found


def make_scores(work: Path, teacher: Teacher, shard: int, num_shards: int) -> None:
    """Score the pairs that the demonstration and the shipped student learn from and are compared on."""
    if SCORES.exists():
        return
    data = load_data()
    held_out = data.held_out
    _, rerank = rerank_pairs(held_out, bm25(held_out.queries, held_out.passages), RERANKED)
    work_items = [
        *plan_pairs(rerank, held_out.task, 256),
        *plan_groups(data.mined(SCORED_EXAMPLES)[:SCORED_EXAMPLES], 256),
    ]
    files = score(teacher, work_items, work / "scores", shard=shard, num_shards=num_shards)
    if all(file.exists() for file in files):
        collect(files).save(SCORES, "float16")


def make_student(work: Path) -> None:
    """Train the student and ship it, in eight bits."""
    if STUDENT.is_dir():
        return
    make(work / "student").save_pretrained(STUDENT, head_dtype=torch.int8)
    found = student_mrr(_shipped_student(), load_data().held_out)
    write_json(work / "student-mrr.json", found)
    print(found)


def make_vectors() -> None:
    """Ship the library's passages as the shipped student embeds them, in eight bits: code alone, and as documented."""
    documented = [function.documented for function in by_name(standard_library_functions()).values()]
    for file, passages in ((VECTORS, load_data().library), (DOCUMENTED_VECTORS, documented)):
        if file.exists():
            continue
        vectors = _shipped_student().encode(passages, "passage", convert_to="torch").cpu()
        ids = torch.tensor([list(bytes.fromhex(text_id(passage))) for passage in passages], dtype=torch.uint8)
        with atomic_path(file) as temporary:
            save_file({"ids": ids, **shrink({"vectors": vectors})}, temporary)


def _shipped_student() -> D2LLM:
    # The decorated signature that transformers gives this method hides its own argument.
    return D2LLM.from_pretrained(STUDENT).to(best_device())  # type: ignore[arg-type]


def main() -> None:
    """Run the steps that have no result yet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/make"), help="folder for checkpoints and shards")
    parser.add_argument("--shard", type=int, default=0, help="which share of the scoring this process does")
    parser.add_argument("--num-shards", type=int, default=1, help="processes that score beside each other")
    arguments = parser.parse_args()
    if arguments.shard == 0:
        make_student(arguments.work)
        make_vectors()
        make_teacher(arguments.work)
    teacher = Teacher.from_pretrained(BASE_MODEL, TEACHER_FOLDER, dtype=torch.bfloat16).to(best_device())
    if arguments.shard == 0:
        judge_teacher(arguments.work, teacher)
    make_scores(arguments.work, teacher, arguments.shard, arguments.num_shards)
    if not SCORES.exists():
        print("scores: other processes are still at theirs")


if __name__ == "__main__":
    main()
