"""What a run leaves behind: its record (files and W&B), tables, progress bars, figures."""

from metagradient.reporting.progress import Progress
from metagradient.reporting.runs.record import Record
from metagradient.reporting.table import print_table

__all__ = ["Progress", "Record", "print_table"]
