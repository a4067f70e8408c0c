"""llama.cpp's own test-backend-ops on our device: no operation fails. --quick: the operations that a cache meets."""
import os
import re
import subprocess
import sys

from llama_host import Checks, environment, program


# Most of the time goes into making inputs: freed memory is kept, as mapping it anew takes a third of it.
KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def main():
    is_quick = "--quick" in sys.argv
    checks = Checks()
    operations = ["SET_ROWS", "ROPE", "CPY"] if is_quick else [None]
    for operation in operations:
        command = [program("test-backend-ops"), "test", "-b", "KVTURBO0", "-j", str(os.cpu_count()), *(["-o", operation] if operation else [])]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=environment("k4v3", **KEEPING), check=False)
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
        passed = re.search(r"(\d+)/(\d+) tests passed", text)
        failed = [line.strip() for line in text.splitlines() if "FAIL" in line]
        is_fine = done.returncode == 0 and passed is not None and passed.group(1) == passed.group(2) and int(passed.group(2)) > 0
        checks.check(is_fine, f"{operation or 'all operations'}: {passed.group(0) if passed else text[-300:]} {failed[:5] or ''}")
    checks.exit()


if __name__ == "__main__":
    main()
