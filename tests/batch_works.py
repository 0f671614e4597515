"""Work of the tests of batches: no weights, and pairs that fail as their ids say.

As a script it runs a batch over a table, as register.py does:

    python tests/batch_works.py TABLE OUT WORKERS SECONDS
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batch.command import BatchOptions, Summary, register_pairs
from batch.work import Record, RegistrationWork, failed_record
from registration.pair_tables import PairToRegister, read_pairs
from utils.errors import run_script
from utils.files import write_text_atomically


@dataclass(frozen=True)
class CaseWork(RegistrationWork):
    """Waits, writes ``transform.json`` and returns a row that depends on the id alone.

    A pair whose id begins with "die" kills its worker, "once" does so the first time, "hang" never
    ends, "bad" fails.

    Attributes:
        pause: seconds a pair.
    """

    pause: float = 0.0

    def open(self) -> Callable[[PairToRegister], Record]:
        return self.do

    def do(self, row: PairToRegister) -> Record:
        died = Path(self.out) / f"{row.id}.died"
        if row.id.startswith("die") or (row.id.startswith("once") and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000.0 if row.id.startswith("hang") else self.pause)
        if row.id.startswith("bad"):
            return failed_record(row, "bad")
        content = {"fixed": {"path": row.fixed}, "moving": {"path": row.moving}}
        write_text_atomically(Path(self.out) / row.id / "transform.json", json.dumps(content))
        return failed_record(row, "") | {"status": "ok", "h02": str(sum(row.id.encode()))}


def case_work(out: Path, pause: float = 0.0, **settings: object) -> CaseWork:
    """The work of a batch into a folder."""
    given = {"weights": "none", "weights_sha256": "0", "transform": "affine", "img_size": None}
    given |= {"device": "cpu", "out": str(out), "exports": (), "pause": pause}
    return CaseWork(**(given | settings))


def rows_named(*names: str, fixed: str = "/none/{}_cf.png") -> list[PairToRegister]:
    """Pairs of files that do not exist."""
    return [
        PairToRegister(name, fixed.format(name), f"/none/{name}_fa.png", {"eye": name[-1]})
        for name in names
    ]


def run_cases(out: Path, rows: list[PairToRegister], **options: object) -> Summary:
    """Register in this process, unless the options say otherwise."""
    pause = options.pop("pause", 0.0)
    return register_pairs(rows, case_work(out, pause), BatchOptions(**({"workers": 1} | options)))


def main() -> None:
    table, out, workers, pause = sys.argv[1:]
    options = BatchOptions(int(workers), command="again")
    register_pairs(read_pairs(table), case_work(Path(out), float(pause)), options)


if __name__ == "__main__":
    run_script(main)
