"""What the facts about a run say against it, each with its remedy: errors that keep it from learning, and warnings."""

from collections.abc import Iterator, Mapping

from d2llm.training.config import TrainConfig
from d2llm.training.preflight.facts import Facts, Lengths
from d2llm.training.preflight.survey import Coverage
from d2llm.training.preflight.trial import StepCost

#: Below this share of judged pairs there is a warning.
COVERED = 0.9
#: Above this share of cut texts there is a warning.
CUT = 0.1
#: Above this share of the steps a warm-up is long.
LONG_WARMUP = 0.5
#: Seconds above which a run is long.
LONG_RUN = 2 * 60 * 60
#: Weights of the losses that need a teacher.
_OF_TEACHER = ("alpha", "beta", "gamma", "eta", "rank_weight")


def errors(facts: Facts, config: TrainConfig) -> Iterator[str]:
    """Why the run cannot learn."""
    if facts.examples - facts.repeated_examples < 2:
        yield (
            f"data.train: expected at least two different examples, got {facts.examples} of one: a query learns from "
            "the passages of others"
        )
    if facts.steps < facts.warmup_steps:
        yield (
            f"the run has {facts.steps} steps, fewer than its warm-up of {facts.warmup_steps}, so that the learning "
            f"rate never reaches optimizer.lr; warm up for less, or train for longer (run.epochs, run.max_steps)"
        )
    found = facts.survey
    if facts.teacher and found.groups.missing and not found.groups.judged:
        yield (
            f"data.teacher: none of the pairs that meet is judged, such as {found.groups.missing[0]}; were the scores "
            "made for these texts? d2llm teach score makes them"
        )
    if config.data.false_negative_filter == "teacher" and found.in_batch.missing and not found.in_batch.judged:
        yield (
            "data.false_negative_filter: 'teacher' needs scores of pairs within a batch, of which data.teacher has "
            "none; d2llm teach score --in-batch makes them"
        )
    idle = idle_losses(facts, config)
    if None not in idle.values():
        yield f"no loss has anything to learn from: {_reasons(idle)}"


def warnings(facts: Facts, config: TrainConfig, cost: StepCost | None) -> Iterator[str]:
    """What makes the run worse than it could be."""
    yield from _about_teacher(facts, config)
    yield from _about_negatives(facts, config)
    if facts.repeated_examples:
        yield (
            f"{facts.repeated_examples} examples repeat the query and the positive of another one "
            f"({', '.join(facts.repeated_places)})"
        )
    if LONG_WARMUP * facts.steps < facts.warmup_steps <= facts.steps:
        yield f"the warm-up takes {facts.warmup_steps} of {facts.steps} steps; a tenth is usual"
    step_size = facts.batch_size * facts.processes
    if config.data.one_task_batches:
        for task in (task for task, count in facts.tasks.items() if count < step_size):
            yield (
                f"task {task}: {facts.tasks[task]} examples do not fill a batch of {step_size}, so none is used; set "
                "a smaller run.batch_size, or data.one_task_batches=false"
            )
    yield from _about_lengths("queries", "query_length", facts.queries)
    yield from _about_lengths("passages", "passage_length", facts.passages)
    if cost is not None and cost.seconds * facts.steps > LONG_RUN:
        yield (
            f"the run takes about {cost.seconds * facts.steps / 3600:.0f} hours on this machine, without evaluation; "
            f"less {_cheaper(config)}"
        )
    if cost is not None and cost.bytes > cost.available:
        yield (
            f"a step takes {cost.bytes / 1e9:.1f} GB, more than this machine's {cost.available / 1e9:.1f} GB; set a "
            "smaller run.batch_size or run.texts_per_chunk, or run.gradient_checkpointing=true"
        )


def idle_losses(facts: Facts, config: TrainConfig) -> dict[str, str | None]:
    """Every loss and why it has nothing to learn from; None where it has."""
    weights, found = config.loss, facts.survey
    alone = "a batch of one" if facts.batch_size == 1 else "every other passage of a batch is a known positive"
    in_batch = None if found.open_columns else alone
    # What will be mined nobody has judged yet.
    mined = config.mining.wanted
    negatives = None if found.negatives or mined else "no hard negatives"
    judged = negatives or (None if found.judged_negatives else "no hard negative is judged")
    unjudged = found.negatives - found.judged_negatives
    labelled = negatives or (None if unjudged or mined or weights.label_share else "every hard negative is judged")
    reasons = {
        "in_batch": (weights.in_batch, in_batch),
        "labels": (weights.labels, labelled),
        "alpha": (weights.alpha * (1 - weights.label_share), judged),
        "beta": (weights.beta, judged),
        "gamma": (weights.gamma, judged or in_batch),
        "rank_weight": (weights.rank_weight if weights.rank else 0, judged),
        "eta": (weights.eta, None if found.compared else "the teacher's features are not compared"),
    }
    return {name: "weight 0" if not weight else why for name, (weight, why) in reasons.items()}


def _about_teacher(facts: Facts, config: TrainConfig) -> Iterator[str]:
    of_teacher = {name: why for name, why in idle_losses(facts, config).items() if name in _OF_TEACHER}
    if facts.teacher and None not in of_teacher.values():
        yield f"no loss learns from the teacher: {_reasons(of_teacher)}"
    groups, in_batch = facts.survey.groups, facts.survey.in_batch
    if 0 < groups.judged and groups.share < COVERED:
        yield f"{_judged(groups, 'of queries and their own passages')}; d2llm teach score adds them"
    if facts.teacher and config.loss.gamma and in_batch.share < COVERED:
        yield (
            f"{_judged(in_batch, 'within a batch')}; pairwise rank imitation takes them as 0; d2llm teach score "
            "--in-batch adds them, loss.gamma=0 does without"
        )


def _about_negatives(facts: Facts, config: TrainConfig) -> Iterator[str]:
    negatives, found = facts.negatives, facts.survey
    if negatives.given and not negatives.drawn:
        yield f"data.negatives=0: none of {negatives.given} hard negatives is used"
    elif found.unused_negatives:
        yield (
            f"no loss uses {found.unused_negatives} of {found.negatives} hard negatives; loss.labels uses those "
            "that no teacher has judged, loss.alpha, loss.beta and loss.gamma the others"
        )
    if negatives.known_positives or negatives.repeated:
        yield (
            f"{negatives.known_positives} hard negatives are known positives of their query and {negatives.repeated} "
            f"repeat another one; they are left out ({', '.join(negatives.places)})"
        )
    if config.loss.in_batch and not found.open_columns:
        yield f"the in-batch loss has nothing to learn from: {idle_losses(facts, config)['in_batch']}"


def _about_lengths(kind: str, name: str, lengths: Lengths) -> Iterator[str]:
    if lengths.cut > CUT:
        yield (
            f"{lengths.cut:.0%} of the {kind} are cut to {lengths.limit} tokens; "
            f"student.{name}={lengths.percentile_99} would keep 99 % whole"
        )


def _cheaper(config: TrainConfig) -> str:
    """What would shorten a step and is not asked for yet."""
    run, ways = config.run, ["with fewer layers (student.num_layers)"]
    if run.gradient_checkpointing:
        ways.append("where memory allows, without a second forward pass (run.gradient_checkpointing=false)")
    if not (run.cache_states or run.interaction_only):
        ways.append("and least with a base that is read once (student.lora_r=0, run.cache_states=true)")
    return ", ".join(ways)


def _reasons(idle: Mapping[str, str | None]) -> str:
    return ", ".join(f"loss.{name} ({why})" for name, why in idle.items())


def _judged(coverage: Coverage, which: str) -> str:
    missing = ", ".join(coverage.missing)
    return (
        f"the teacher has judged {coverage.judged} of {coverage.met} pairs {which} ({coverage.share:.0%}); not judged "
        f"are, for example, {missing}"
    )
