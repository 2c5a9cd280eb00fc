"""Make the stored calibration anew: ``make calibration``. The same numbers come out for any number of processes.

With names, such as ``python -m tests.calibration flags``, only the tables of these records are made anew.
"""

import os
import sys

from analysis_helpers.synthetic.calibration import CALIBRATION_FILE
from tests.calibration.calibration import RECORDS, write_calibration

if __name__ == "__main__":
    write_calibration(CALIBRATION_FILE, workers=os.cpu_count() or 1, records=sys.argv[1:] or RECORDS)
    print(CALIBRATION_FILE)
