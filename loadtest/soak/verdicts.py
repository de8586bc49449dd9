"""What must hold after a soak, and how sure the answer is."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gateway.growth import DAY_S, TOO_FEW, Growth, fit
from loadtest.soak.plan import Plan
from loadtest.soak.samples import HELD_ON_PURPOSE, Sample

CONNECTIONS_LEAST = 15_000
COMINGS_PER_S = 300.0
SMALL_SHARE = 0.8  # of what a smaller plan asks for
GROWTH_PER_DAY_MAX = 0.0005
CONFIDENCE = 0.95
# What growth may be at most, at that confidence, for "not told apart from 0" to say anything: a node that may double in
# a day, or lose a file with every thousandth connection, has not been looked at for long enough. The node of a whole
# soak is 120 MiB, so this is 4 bytes for each connection that came, less than anything that malloc gives out.
TOLD_PER_DAY_MAX = 1.0
TOLD_FILES_PER_CONNECTION_MAX = 0.001
LISTED_MAX = 10
# Of the regulars' own counts: what must be 0 to the message.
MUST_BE_ZERO = ("lost", "repeated", "out_of_order", "corrupt", "told_gaps", "overdue")
Result = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A promise, with its figures, and whether it was kept; None: this run cannot tell."""

    text: str
    kept: bool | None

    def __str__(self) -> str:
        return f"{ {True: 'kept', False: 'NOT KEPT', None: 'cannot tell at this length'}[self.kept]:8}  {self.text}"


@dataclass(frozen=True)
class GrowthFigure:
    """Growth of one quantity over the second half."""

    name: str
    growth: Growth
    per_connection: float
    """The most that the interval allows, for each connection that came and went."""

    @property
    def is_kept(self) -> bool | None:
        """Below the promise for sure, or not told apart from 0 while more than a little would have been.

        None: it cannot be told.
        """
        if self.growth.growing:
            return self.growth.relative_high < GROWTH_PER_DAY_MAX
        if self.growth.verdict == TOO_FEW:
            return None
        if self.name == "files":
            return True if self.per_connection < TOLD_FILES_PER_CONNECTION_MAX else None
        return True if self.growth.relative_high < TOLD_PER_DAY_MAX else None

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.growth), "per_connection_at_most": self.per_connection}

    def __str__(self) -> str:
        """The estimate, its interval, and how fine it could have told."""
        found = self.growth
        text = (
            f"{self.name}: {found.relative_per_day:+.2%} a day ({found.relative_low:+.2%} to {found.relative_high:+.2%}"
            f" at {found.confidence:.0%}), {found.verdict}; resolution"
            f" ±{(found.relative_high - found.relative_low) / 2:.2%} a day"
        )
        unit = "files" if self.name == "files" else "bytes"
        text += f", or {self.per_connection:.2g} {unit} at most for each connection that came"
        if found.steps_s:
            text += f"; steps at {', '.join(f'{at_s:.0f} s' for at_s in found.steps_s)} set aside"
        return text


def growth_of(name: str, samples: list[Sample], values: list[float]) -> GrowthFigure:
    """The fit of one quantity over these samples; what follows the number of connections is no growth."""
    load = [[float(sample.connections) for sample in samples]]
    found = fit([sample.at_s for sample in samples], values, CONFIDENCE, load=load)
    comings = samples[-1].opened - samples[0].opened
    days = (samples[-1].at_s - samples[0].at_s) / DAY_S
    return GrowthFigure(name, found, max(0.0, found.high) * days / comings if comings else 0.0)


def second_half(samples: list[Sample], plan: Plan) -> list[Sample]:
    """What is fitted: all tables have been at their peak by then."""
    return [sample for sample in samples if sample.at_s >= plan.warmup_s]


def growth_figures(samples: list[Sample], plan: Plan) -> list[GrowthFigure]:
    """Private memory of the node and of each process, and its open files beside connections."""
    half = second_half(samples, plan)
    figures = [growth_of("memory", half, [float(sample.memory) for sample in half])]
    for process in half[0].private:
        figures.append(growth_of(f"memory of {process}", half, [float(sample.private[process]) for sample in half]))
    figures.append(growth_of("files", half, [float(sample.files) for sample in half]))
    return figures


# ---- the promises ----


def load_verdicts(plan: Plan, samples: list[Sample], regulars: Result, rogues: Result) -> Iterator[Verdict]:
    """That it was the load it is said to be, and that everybody was served right."""
    half = second_half(samples, plan)
    least = min(sample.connections for sample in half)
    wanted = CONNECTIONS_LEAST if plan.connections >= CONNECTIONS_LEAST else int(SMALL_SHARE * plan.connections)
    yield Verdict(f"never fewer than {least:,} connections (at least {wanted:,})", least >= wanted)
    comings = (half[-1].opened - half[0].opened) / max(half[-1].at_s - half[0].at_s, 1.0)
    planned = plan.churn + plan.rogues
    owed = COMINGS_PER_S if planned >= COMINGS_PER_S else SMALL_SHARE * planned
    yield Verdict(f"{comings:.0f} new connections a second (at least {owed:.0f})", comings >= owed)
    counts = regulars["counts"]
    wrong = [f"{counts[name]:,} {name}" for name in MUST_BE_ZERO if counts[name]]
    yield Verdict(
        f"{counts['delivered']:,} deliveries and {counts['caught_up']:,} caught up; nothing lost, repeated, reordered,"
        f" corrupt{''.join(f'; {text}' for text in wrong)}",
        not wrong and regulars["settled"],
    )
    faults = [f"{count} {text}" for text, count in regulars["faults"].items()]
    yield Verdict(
        f"no regular was refused or cut off{''.join(f'; {text}' for text in faults)}",
        not faults and not regulars["without_end"],
    )
    strange = [f"{count} {text}" for text, count in rogues["unexpected"].items()]
    done = sum(rogues["done"].values())
    yield Verdict(
        f"{done:,} rogues of {len(rogues['done'])} kinds met what they had to meet"
        f"{''.join(f'; {text}' for text in strange)}",
        not strange and done > 0,
    )


def logged_verdicts(found: Result) -> Iterator[Verdict]:
    """That what was acknowledged at `logged` was kept, on a node whose router was killed."""
    counts, gaps = found["counts"], found["outcomes"].get("gap", 0)
    lived = counts.get("acknowledged", 0) > 0 and gaps > 0 and found["router_kills"] > 0
    faults = [f"; {count} {kind}" for kind, count in found["faults"].items()]
    yield Verdict(
        f"{counts.get('acknowledged', 0):,} messages acknowledged at `logged` and {counts.get('delivered', 0):,}"
        f" deliveries over {counts.get('returns', 0):,} returns, {gaps:,} gaps told of what is not kept any more, the"
        f" router killed {found['router_kills']} times: nothing lost, repeated or passed over in silence"
        f"{''.join(faults)}",
        not faults and found["exit_code"] == 0 and lived,
    )


def end_verdicts(result: Result) -> Iterator[Verdict]:
    """That nothing is left."""
    open_still = [f"{kind} {by:+}" for kind, by in result["unbalanced"].items()]
    yield Verdict(
        f"every line of the ledger closes{''.join(f'; {text}' for text in open_still)}"
        f" (beside {' and '.join(HELD_ON_PURPOSE)}, kept for their time)",
        not open_still,
    )
    audit = result["audit"]
    yield Verdict(f"the audit walks all tables and finds the same{listed(audit)}", not audit)
    left = [f"{name} {by:+}" for name, by in result["files_left"].items()]
    yield Verdict(f"every process has the open files that it had before{''.join(f'; {t}' for t in left)}", not left)
    ended = result["processes_ended"]
    yield Verdict(f"no process ended{listed(ended)}", not ended)
    new = result["processes_new"]
    yield Verdict(f"no process is there that was not before{listed(new)}", not new)
    wrong = [f"{count} {name}" for name, count in result["found_wrong"].items()]
    yield Verdict(f"no process counts a handle that leaked or a task that failed{listed(wrong)}", not wrong)
    errors = result["errors"]
    yield Verdict(f"the node logged no error{listed(errors)}", not errors)


def listed(findings: list[str]) -> str:
    """The first of them, as the end of a sentence."""
    more = [f"{len(findings) - LISTED_MAX} more"] if len(findings) > LISTED_MAX else []
    return "".join(f"; {finding}" for finding in [*findings[:LISTED_MAX], *more])


def growth_verdicts(figures: list[GrowthFigure]) -> Iterator[Verdict]:
    """Of the node as a whole; what each process did stands beside it."""
    for figure in figures:
        if figure.name in ("memory", "files"):
            yield Verdict(str(figure), figure.is_kept)
