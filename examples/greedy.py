"""Takes ten more megabytes every tenth of a second."""

import time

held = []
while True:
    held.append(bytearray(10_000_000))
    print(f"{len(held) * 10} MB", flush=True)
    time.sleep(0.1)
