"""Which series a row belongs to, and how that looks: what the table or the methods' YAML says."""

from quantable.config.schema import Looks
from quantable.report.reporter import Reporter


def looks_of(reporter: Reporter, row: str) -> Looks:
    """Looks of a row's series: the table's, or those of the search or quantizer behind it."""
    about = reporter.table.rows[row]
    if about.series is not None:
        return reporter.table.series[about.series]
    behind = about.chosen.by if about.chosen is not None else row
    config = reporter.cell(behind, reporter.budget, reporter.seeds[0]).config
    return Looks.model_validate((config["search"] or config["quantizer"])["looks"])


def in_float(reporter: Reporter, row: str) -> bool:
    """Whether a row is of a network that is neither quantized nor costed as if it were."""
    about = reporter.table.rows[row]
    if about.cost_bits is not None or about.bits is not None or about.sizes is not None:
        return False
    config = reporter.cell(row, reporter.budget, reporter.seeds[0]).config
    return config["search"] is None and config["quantizer"]["callback"] is None
