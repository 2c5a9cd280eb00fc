"""Make the stored calibration anew: ``make calibration``. The same numbers come out for any number of processes."""

import os

from analysis_helpers.synthetic.calibration import CALIBRATION_FILE
from tests.calibration.calibration import write_calibration

if __name__ == "__main__":
    write_calibration(CALIBRATION_FILE, workers=os.cpu_count() or 1)
    print(CALIBRATION_FILE)
