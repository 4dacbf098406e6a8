"""The figures of a table of the MASERes paper, and every two of its networks compared.

Each pair has McNemar's exact test, Cohen's kappa of the two networks' decisions, and the paper's
own z-test (`maseres_z`), which stands here so that Table 5 has its counterpart; its defects are
listed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from chestct.evaluation.comparisons import Comparison, compare
from chestct.evaluation.intervals import Bootstrap
from chestct.studies.audit_maseres_tests import (
    KappaAudit,
    PValueAudit,
    audit_kappa,
    audit_p_values,
)
from chestct.studies.compare_with_paper import (
    MASERES_NETWORKS,
    Beside,
    maseres_beside,
    maseres_model,
)
from chestct.studies.maseres_rows import NetworkRow
from chestct.studies.published.facts import maseres_facts
from chestct.studies.row_figures import (
    RowTest,
    TableRow,
    compare_rows,
    make_rows,
    on_common_scans,
)
from chestct.studies.study_rows import RowResult

MAIN: str = "maseres"
"""The network that the paper compares with the others."""


@dataclass(frozen=True)
class PrintedPair:
    """What the paper prints of MASERes against another network, and what its counts give.

    Attributes:
        kappa: The kappa of the text.
        p_values: Table 5, by figure.
    """

    kappa: KappaAudit
    p_values: dict[str, PValueAudit]


@dataclass(frozen=True)
class Pair:
    """Two networks on the inputs that both judged.

    Attributes:
        test: McNemar's exact test.
        kappa: Agreement of their decisions.
        z: The paper's z-test, one row per figure.
        printed: What the paper says of the two; None where it says nothing.
    """

    test: RowTest[NetworkRow]
    kappa: Comparison
    z: tuple[Comparison, ...]
    printed: PrintedPair | None

    @property
    def names(self) -> tuple[str, str]:
        """Both networks."""
        return self.test.first.name, self.test.second.name


@dataclass(frozen=True)
class PaperTable:
    """The finished rows of a table, and its pairs."""

    rows: tuple[TableRow[NetworkRow], ...]
    pairs: tuple[Pair, ...]

    def beside(self, row: TableRow[NetworkRow]) -> tuple[Beside, ...]:
        """A row's figures beside the paper's."""
        return maseres_beside(row.figures, row.row.network)


def make_table(
    results: Sequence[RowResult[NetworkRow]], bootstrap: Bootstrap | None = None
) -> PaperTable:
    """Figures of every row with intervals, and every two rows compared.

    Args:
        results: Of the finished rows, in the order of the table.
        bootstrap: How patients are drawn; None takes the default.
    """
    rows = make_rows(results, bootstrap)
    pairs = list(combinations(rows, 2))
    tests = compare_rows([(*pair, "network") for pair in pairs])
    return PaperTable(
        rows, tuple(_pair(*pair, test) for pair, test in zip(pairs, tests, strict=True))
    )


def _pair(
    first: TableRow[NetworkRow], second: TableRow[NetworkRow], test: RowTest[NetworkRow]
) -> Pair:
    one, other = on_common_scans(first.predictions, second.predictions)
    (kappa,) = compare(one, other, "kappa")
    return Pair(
        test=test,
        kappa=kappa,
        z=compare(one, other, "maseres_z"),
        printed=printed_pair(first.row.network, second.row.network),
    )


@cache
def printed_pair(first: str, second: str) -> PrintedPair | None:
    """What the paper prints of two networks; None unless the first is MASERes."""
    if first != MAIN or second not in MASERES_NETWORKS or second == MAIN:
        return None
    facts = maseres_facts()
    main, other = maseres_model(first), maseres_model(second)
    audited = audit_p_values(main, other, facts.table_5)
    return PrintedPair(
        kappa=audit_kappa(main, other, facts.kappa[other.name]),
        p_values={each.figure: each for each in audited},
    )
